"""``leyden check``: says what is wrong with config files before they are used."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.commands import Arguments, in_one_line, load_tree
from leyden.cli.config import config_folder, find_config, read_config
from leyden.cli.run import find_stages
from leyden.cli.stages import read_stages

__all__ = ["check"]


def check(argv: Sequence[str]) -> int:
    """Checks config files and stages files.

    Returns:
        The exit code: 1 if one is wrong.
    """
    parser = ArgumentParser(
        prog="leyden check",
        description="Reads config files as leyden fit does, and stages files as leyden run does, and makes their "
        "objects, but trains nothing. A mistake is named with file and line.",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="file or name, as -c and leyden run take it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(list(argv))
    names: list[str] = arguments.configs
    return max([in_one_line(lambda name=name: _check(name), debug=arguments.debug) for name in names])  # type: ignore[misc]


def _check(name: str) -> int:
    path = find_stages(name)
    if "stages" in read_config(path):
        stages = read_stages(path)
        from leyden.cli.stage_config import check_stages

        check_stages(stages, [], Path("-"))
    else:
        path = find_config(name)
        is_default = path.resolve() == (config_folder() / "default.yaml").resolve()
        tree, files = load_tree("fit", Arguments(config=[] if is_default else [name]))
        # torch takes seconds to import: the files are read before
        from leyden.cli.checked_config import check_config

        check_config(tree, files)
    print(f"{path}: good")
    return 0
