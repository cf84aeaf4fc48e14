"""``leyden schema``: what a config file may hold, as a JSON Schema for editors."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.commands import in_one_line
from leyden.cli.config import config_folder

__all__ = ["schema"]


def schema(argv: Sequence[str]) -> int:
    """Writes the schema.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden schema",
        description="Writes a JSON Schema of config files and stages files: every class that can stand at each place, "
        "its arguments, their defaults and what they are for. Editors complete and check with it.",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: configs/schema.json; - is the terminal")
    arguments = parser.parse_args(list(argv))
    return in_one_line(lambda: _write(arguments.output))


def _write(path: Path | None) -> int:
    import json

    from leyden.cli.config_schema import config_schema
    from leyden.core.replace_file import replace_file

    text = json.dumps(config_schema(), indent=1) + "\n"
    if str(path) == "-":
        print(text, end="")
        return 0
    path = path or config_folder() / "schema.json"
    with replace_file(path) as file:
        file.write(text.encode())
    print(f"leyden: {path}")
    return 0
