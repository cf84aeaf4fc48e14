"""Parses a config and makes its objects, and that is all."""

import logging
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.cli.commands import Arguments
from leyden.cli.config import ConfigError, Section, set_option
from leyden.cli.lightning import LeydenCLI, quiet_lightning
from leyden.cli.run_folder import RunFolder

__all__ = ["check_config"]


class CheckCLI(LeydenCLI):
    """Makes the objects of a fit.

    Args:
        tree: the merged config.
        files: the config files that were named.
        folder: stands in for the folder of the run.
    """

    def __init__(self, tree: Section, files: list[Path], folder: Path) -> None:
        self._folder = folder
        super().__init__("fit", tree, Arguments(), files)

    def _choose_run(self, tested: RunFolder | None) -> RunFolder:
        return RunFolder(self._folder)

    def _run_subcommand(self, subcommand: str) -> None:
        """Trains nothing."""


def check_config(tree: Section, files: list[Path]) -> None:
    """Checks a config.

    Args:
        tree: the merged config.
        files: the config files that were named.

    Raises:
        ConfigError: something in it is wrong; the message says where.
    """
    quiet_lightning()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    set_option(tree, "trainer.accelerator", "cpu")  # the machine that trains may be another
    set_option(tree, "trainer.devices", "1")
    try:
        with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            CheckCLI(tree, files, Path(folder))
    except (ValueError, MisconfigurationException) as error:
        raise ConfigError(_with_line(str(error), tree)) from error


def _with_line(message: str, tree: Section) -> str:
    """Adds where that is written which a constructor's message begins with: ``Class: argument``, or one of both."""
    class_name, colon, rest = message.partition(": ")
    nodes = [node for node in _class_nodes(tree) if node["class_path"].rsplit(".", 1)[-1] == class_name]
    argument = (rest if colon and nodes else message).split(" ")[0]
    origins = []
    for node in nodes or _class_nodes(tree):
        arguments = node.get("init_args")
        if isinstance(arguments, Section) and argument in arguments:
            origins.append(arguments.origin[argument])
    origins = origins or [node.origin["class_path"] for node in nodes]
    return f"{origins[0]}: {message}" if len(origins) == 1 else message


def _class_nodes(node: Any) -> Iterator[Section]:
    if isinstance(node, Section) and isinstance(node.get("class_path"), str):
        yield node
    for value in node.values() if isinstance(node, Section) else node if isinstance(node, list) else ():
        yield from _class_nodes(value)
