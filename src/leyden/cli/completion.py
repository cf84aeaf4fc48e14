"""``leyden completion``: the shell completes commands, options, names of configs and keys.

The script that it prints asks ``leyden completion words`` for what may stand next, which imports nothing that is slow.
"""

import re
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from leyden.cli import COMMANDS
from leyden.cli.commands import HELP, HELP_FIT, Arguments, in_one_line, load_tree
from leyden.cli.config import ConfigError, Section, config_folder

__all__ = ["complete", "completion"]

SCRIPTS = {
    "bash": """\
_leyden() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(leyden completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" \\
    -- "${COMP_WORDS[COMP_CWORD]}"))
  [[ ${COMPREPLY[0]} != *= ]] || compopt -o nospace
}
complete -o default -F _leyden leyden
""",
    "zsh": """\
#compdef leyden
_leyden() {
  local -a found
  found=("${(@f)$(leyden completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -S '' -- ${(M)found:#*=}
  compadd -- ${found:#*=}
  _files
}
compdef _leyden leyden
""",
}
OF_A_FIT = ("fit", "validate", "test", "predict")


def completion(argv: Sequence[str]) -> int:
    """Prints a shell's script, or words for one.

    Returns:
        The exit code.
    """
    if argv and argv[0] == "words":
        print("\n".join(complete([word for word in argv[1:] if word != "--"] or [""])))
        return 0
    parser = ArgumentParser(
        prog="leyden completion",
        description='Prints a script for your shell: eval "$(leyden completion bash)" in ~/.bashrc; in ~/.zshrc the '
        "same with zsh, behind compinit.",
    )
    parser.add_argument("shell", choices=SCRIPTS)
    shell = parser.parse_args(list(argv)).shell
    return in_one_line(lambda: print(SCRIPTS[shell], end="") or 0)


def complete(words: list[str]) -> list[str]:
    """What may stand in the place of the last word, the first being the command.

    Args:
        words: as they were typed; the last one may be empty or unfinished.
    """
    *before, begun = words
    if not before:
        found = [*COMMANDS, "--help", "--version"]
    elif before[-1] in ("-c", "--config"):
        found = _configs("")
    elif begun.startswith("-"):
        found = [*_options(before[0]), *(_keys(before) if before[0] in OF_A_FIT and begun != "-" else [])]
    else:
        found = _positional(before[0])
    return [word for word in found if word.startswith(begun)]


def _positional(command: str) -> list[str]:
    if command == "show":
        from leyden.catalog.papers import paper_slugs

        return paper_slugs()
    if command == "new":
        from leyden.cli.new import ROOMS

        return list(ROOMS)
    return {
        "compare": _configs(""),
        "run": _configs("stages/"),
        "check": [*_configs(""), *_configs("stages/")],
        "sweep": _configs("sweep/"),
        "completion": list(SCRIPTS),
    }.get(command, [])


def _configs(folder: str) -> list[str]:
    """Names of configs: of one folder, or of those that ``-c`` takes."""
    configs = config_folder()
    names = [path.relative_to(configs).with_suffix("").as_posix() for path in sorted(configs.rglob("*.yaml"))]
    if folder:
        return [name.removeprefix(folder) for name in names if name.startswith(folder)]
    return [name.removeprefix("experiment/") for name in names if not name.startswith(("stages/", "sweep/"))]


def _options(command: str) -> list[str]:
    """Options, read from the source of the command: importing it may take seconds."""
    if command not in COMMANDS:
        return []
    spec = find_spec(COMMANDS[command][0].split(":")[0])
    assert spec is not None
    assert spec.origin is not None
    found = re.findall(r"add_argument\([^)]*?\"(--[a-z][\w-]*)\"", Path(spec.origin).read_text())
    if command in OF_A_FIT:
        found += re.findall(r"^  (?:-c, )?(--[a-z]\w*)", HELP + (HELP_FIT if command == "fit" else ""), re.M)
    return sorted({*found, "--help"})


def _keys(before: list[str]) -> list[str]:
    """Keys of the config that was typed so far."""
    named = [word for option, word in pairwise(before) if option in ("-c", "--config")]
    try:
        tree, _ = load_tree("fit", Arguments(config=named))
    except ConfigError:
        return []
    return [f"--{key}=" for key in _leaves(tree)]


def _leaves(node: Any, path: str = "") -> list[str]:
    if isinstance(node, list) and any(isinstance(item, Section) for item in node):
        named = {item["class_path"].rsplit(".", 1)[-1]: item for item in node if isinstance(item, Section)}
        return [leaf for name, item in named.items() for leaf in _leaves(item.get("init_args"), f"{path}.{name}")]
    if not isinstance(node, Section):
        return [path] if path and node is not None else []
    if "class_path" in node:
        return [path, *_leaves(node.get("init_args"), path)]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}.{key}".lstrip("."))]
