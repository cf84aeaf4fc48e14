"""Configs of runs that are measured, not watched."""

from leyden.cli.config import Section, set_option

__all__ = ["only_measured"]

ONLY_SHOW = ("ProgressBar", "LearningRateMonitor", "RunRecord")  # callbacks that do not change what a fit gives


def only_measured(tree: Section, *, logger: str = "[{class_path: leyden.plugins.CSVLogger}]") -> None:
    """Takes from a config, in place, what only shows a run.

    Args:
        tree: the merged config.
        logger: what is left to log with, in YAML.
    """
    set_option(tree, "trainer.logger", logger)
    callbacks = tree["trainer"].get("callbacks")
    if isinstance(callbacks, list):
        paths = [item if isinstance(item, str) else item["class_path"] for item in callbacks]
        callbacks[:] = [item for item, path in zip(callbacks, paths, strict=True) if not path.endswith(ONLY_SHOW)]
    set_option(tree, "trainer.enable_progress_bar", "false")
