"""What a part is, read from its source: importing it would import torch."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Part", "describe_part"]

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A public class or function.

    Attributes:
        path: import path.
        signature: arguments with types and defaults, as they are written.
        summary: first line of the docstring.
    """

    path: str
    signature: str
    summary: str


def describe_part(path: str) -> Part:
    """Reads a part.

    Args:
        path: ``leyden.<room>.<Name>``.

    Raises:
        ValueError: the room does not export the name.
    """
    _, room, name = path.split(".")
    stub = PACKAGE / room / "__init__.pyi"
    exported = re.search(rf"^from \.(\w+) import {name} as {name}$", stub.read_text(), re.M) if stub.is_file() else None
    if exported is None:
        raise ValueError(f"the room {room} does not export {name!r}")
    tree = ast.parse((PACKAGE / room / f"{exported[1]}.py").read_text())
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)
    maker = node if isinstance(node, ast.FunctionDef) else _find_init(node, tree)
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return Part(path, f"{name}({_arguments(maker)})", summary)


def _find_init(node: ast.ClassDef, tree: ast.Module) -> ast.FunctionDef | None:
    """The constructor, also that of a base in the same file."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    names = [base.id for base in node.bases if isinstance(base, ast.Name)]
    bases = [item for item in tree.body if isinstance(item, ast.ClassDef) and item.name in names]
    return next((found for base in bases if (found := _find_init(base, tree))), None)


def _arguments(function: ast.FunctionDef | None) -> str:
    if function is None:
        return "..."
    arguments = function.args
    if arguments.args and arguments.args[0].arg == "self":
        del arguments.args[0]
    return ast.unparse(arguments)
