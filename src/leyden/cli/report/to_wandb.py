"""The pictures of the page in W&B."""

import base64
import io
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from matplotlib.image import imread

from leyden.cli.report.command import PAGE
from leyden.cli.report.page import figure_page
from leyden.cli.report.pictures import evaluation_figures
from leyden.cli.report.saved_run import read_run

__all__ = ["log_report"]


def log_report(logger: WandbLogger, folder: Path) -> None:
    """Logs the page, each of its pictures of the test, and the worst samples as images.

    Args:
        logger: of the run.
        folder: of the run, with its page.
    """
    run = read_run(folder, folder.name)
    media: dict[str, object] = {"trainer/global_step": run.steps}
    media["report/page"] = wandb.Html((folder / PAGE).read_text(), inject=False)
    figures = evaluation_figures(run) if run.test else {}
    for name, html in figures.items():
        media[f"report/{name}"] = wandb.Html(figure_page(name, html), inject=False)
    images = [
        wandb.Image(
            imread(io.BytesIO(base64.b64decode(sample["image"]))),
            caption=f"{sample['index']}: {sample['prediction']}, truly {sample['target']}",
        )
        for sample in (run.test or {}).get("worst", [])
        if "image" in sample
    ]
    if images:
        media["report/worst_images"] = images
    logger.experiment.log(media)
