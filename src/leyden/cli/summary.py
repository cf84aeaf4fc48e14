"""The table at the end of a fit."""

import os
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from leyden.cli.run_folder import RunFolder

__all__ = ["print_summary"]


def print_summary(
    run: RunFolder, trainer: Trainer, metrics: dict[str, float], seconds: float, best: str | None
) -> None:
    """Prints what came out and where it lies.

    Args:
        run: folder of the run.
        trainer: after the fit.
        metrics: of the test.
        seconds: that the fit took.
        best: checkpoint that was tested, if there is one.
    """
    table = Table(show_header=False, title=run.label, title_justify="left")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    table.add_row("epochs", str(trainer.current_epoch))
    table.add_row("seconds", f"{seconds:.1f}")
    table.add_row("parameters", f"{sum(p.numel() for p in trainer.lightning_module.parameters()):,}")
    own = {"log": run.path / "metrics.csv", "config": run.config, "page": run.path / "report.html"}
    files = {"checkpoint": best} | own
    for name, path in files.items():
        if path is not None and Path(path).exists():
            table.add_row(name, os.path.relpath(path))
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)  # a path cut in two cannot be copied
    console.print(table)
