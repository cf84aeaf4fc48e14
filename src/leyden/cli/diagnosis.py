"""Says in one line what is wrong with a config that could not be parsed.

The parser's own message lists every type of every union that a value does not fit. Here the config is walked again,
innermost values first, until the one that is wrong is found.
"""

import re
from argparse import ArgumentError
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leyden.cli.config import Section, plain

__all__ = ["ROOMS", "diagnose", "parser_of"]

# Where public classes are found.
ROOMS = (
    "leyden.callbacks",
    "leyden.data",
    "leyden.losses",
    "leyden.methods",
    "leyden.models",
    "leyden.nn",
    "leyden.optim",
    "leyden.plugins",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "torch.optim",
    "torch.optim.lr_scheduler",
)
MANY = 12  # names that a message lists at most


class _WrongError(Exception):
    """Carries the line."""


def diagnose(tree: Section, parser: ArgumentParser, error: ArgumentError) -> str:
    """Finds what is wrong.

    Args:
        tree: the merged config.
        parser: of the command, for the names of the top-level keys.
        error: what the parser said; shortened if nothing is found.

    Returns:
        One line: where, what, and what it may be.
    """
    known = sorted({action.dest.split(".")[0] for action in parser._actions} - {"help", "config", "print_config"})
    trainer_arguments = _argument_names(Trainer)
    try:
        for key, value in tree.items():
            origin = tree.origin[key]
            if key not in known:
                if key in trainer_arguments:
                    raise _WrongError(f"{origin}: {key!r} is no top-level key; did you mean trainer.{key}?")
                raise _WrongError(f"{origin}: {key!r} is no top-level key; {_advice(key, known)}")
            if key == "trainer" and isinstance(value, Section):
                _check_arguments(value, Trainer, "the Trainer", "trainer")
            else:
                _check(value, key, origin)
                _check_top_level(parser, key, value, origin)
    except _WrongError as wrong:
        return str(wrong)
    return _shorten(str(error))


def _check(value: Any, path: str, origin: str) -> None:
    """Checks all class nodes in a value."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, f"{path}[{number}]", origin)
    elif isinstance(value, Section) and "class_path" in value:
        origin = value.origin.get("class_path", origin)
        name = value["class_path"]
        component = _import(name, path, origin)
        for key in value.keys() - {"class_path", "init_args", "dict_kwargs"}:
            raise _WrongError(
                f"{value.origin[key]}: {path}.{key}: beside class_path stand only init_args and dict_kwargs; "
                f"arguments of {name} belong into init_args"
            )
        arguments = value.get("init_args")
        if isinstance(arguments, Section):
            _check_arguments(arguments, component, name, path)
        _check_required(plain(arguments) or {}, component, f"{origin}: {path}: {name}")
    elif isinstance(value, Section):
        for key, item in value.items():
            _check(item, f"{path}.{key}", value.origin[key])


def _check_arguments(arguments: Section, component: Any, name: str, path: str) -> None:
    """Checks names and values of a component's arguments."""
    known = _argument_names(component)
    for key in arguments:
        if key not in known and not _takes_anything(component, key):
            raise _WrongError(
                f"{arguments.origin[key]}: {path}: {key!r} is not an argument of {name}; {_advice(key, known)}"
            )
    for key, value in arguments.items():
        origin, here = arguments.origin[key], f"{path}.{key}"
        _check(value, here, origin)
        if key in known:
            _check_value(component, key, value, here, origin)


def _check_value(component: Any, key: str, value: Any, path: str, origin: str) -> None:
    parser = parser_of(component, only=key)
    try:
        parser.parse_object({key: plain(value)})
    except ArgumentError as error:
        if isinstance(value, list) and len(value) > 1:
            for number, item in enumerate(value):  # blame one item, if one alone is wrong
                _check_value(component, key, [item], f"{path}[{number}]", origin)
        item = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(item, str) and re.fullmatch(r"\w+(\.\w+)+", item):
            _import(item, path, origin)
        shown, expected = repr(plain(item))[:80], _expected(str(error))
        if isinstance(item, Section) and "class_path" in item:
            shown, origin = item["class_path"], item.origin.get("class_path", origin)
        if item is not value:
            expected = re.sub(r"^list\[(.+?)\] or .*", r"\1", expected)
        raise _WrongError(f"{origin}: {path}: {shown} is not {expected}") from error


def _check_top_level(parser: ArgumentParser, key: str, value: Any, origin: str) -> None:
    if isinstance(value, Section | list):
        return
    for action in parser._actions:
        if action.dest == key:
            try:
                parser._check_value_key(action, value, key, None)
            except (TypeError, ValueError) as error:
                raise _WrongError(f"{origin}: {key}: {value!r} is not {_expected(str(error))}") from error


def _check_required(arguments: dict[str, Any], component: Any, where: str) -> None:
    try:
        parser_of(component).parse_object(arguments)
    except ArgumentError as error:
        missing = re.search(r"arguments are required: (.+)", str(error))
        if missing:
            raise _WrongError(f"{where} needs a value for {missing[1]}") from error


def _import(name: Any, path: str, origin: str) -> Any:
    """Imports a class or function by its path."""
    where = f"{origin}: {path}:"
    if not isinstance(name, str):
        raise _WrongError(f"{where} class_path must be an import path, got {name!r}")
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise _WrongError(f"{where} class_path {name!r} is no import path, such as package.module.Name{_found(name)}")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _WrongError(f"{where} {name} cannot be imported: {error}") from error
        raise _WrongError(f"{where} there is no module {error.name!r}{_found(attribute)}") from error
    except ImportError as error:
        raise _WrongError(f"{where} {name} cannot be imported: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        near = get_close_matches(attribute, dir(module), n=1)
        advice = f"; did you mean {module_name}.{near[0]}?" if near else _found(attribute)
        raise _WrongError(f"{where} there is no {attribute!r} in {module_name}{advice}") from error
    except ImportError as error:
        raise _WrongError(f"{where} {name} cannot be imported: {error}") from error


def _found(name: str) -> str:
    """Advice: where a class of this or a near name is."""
    homes: dict[str, str] = {}
    for room in ROOMS:
        for public in dir(import_module(room)):
            homes.setdefault(public, room)
    near = get_close_matches(name, homes, n=1)
    return f"; did you mean {homes[near[0]]}.{near[0]}?" if near else ""


def parser_of(component: Any, only: str | None = None) -> ArgumentParser:
    """A parser of the arguments of a class or function, without those that its caller gives."""
    parser = ArgumentParser(exit_on_error=False)
    skip: set[str | int] = set()
    if isinstance(component, type):
        # given by the caller of the partial
        skip = {"params"} if issubclass(component, Optimizer) else skip
        skip = {"optimizer"} if issubclass(component, LRScheduler) else skip
    if only is not None:
        skip |= {name for name in _argument_names(component) if name != only}
    if isinstance(component, type):
        parser.add_class_arguments(component, fail_untyped=False, sub_configs=True, skip=skip)
    elif callable(component):
        parser.add_function_arguments(component, fail_untyped=False, sub_configs=True, skip=skip)
    return parser


def _argument_names(component: Any) -> list[str]:
    names = [action.dest for action in parser_of(component)._actions]
    return [name for name in names if name != "help" and not name.endswith(".help")]


def _takes_anything(component: Any, key: str) -> bool:
    """Whether the parser lets an unknown argument pass: the component has ``**kwargs`` that lead nowhere."""
    try:
        parser_of(component).parse_object({key: 0})
    except ArgumentError as error:
        return "are required" in str(error)
    return True


def _advice(key: Any, known: Iterable[str]) -> str:
    known = list(known)
    near = get_close_matches(str(key), known, n=1)
    some = ", ".join(known[:MANY]) + (", ..." if len(known) > MANY else "")
    it_may_be = f"it may be {some}" if known else "there are none"
    return f"did you mean {near[0]!r}? ({it_may_be})" if near else it_may_be


def _expected(message: str) -> str:
    """Names the types that the parser's message says a value should have."""
    union = re.search(r"Subtypes: \[(.*)\]\n", message)
    single = re.search(r"Expected (?:an? )?(.+?)(?:\. Got value|\n|$)", message)
    subclass = re.search(r"ubclass of (\w+)", message)
    if union:
        parts = re.split(r", (?![^\[]*\])", union[1])
    elif single or subclass:
        parts = [(single or subclass)[1]]  # type: ignore[index]
    else:
        return f"accepted: {_shorten(message)}"
    return " or ".join(_type_name(part) for part in parts)


def _type_name(text: str) -> str:
    text = re.sub(r"<class '(.+?)'>", r"\1", text)
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)
    return text.replace("NoneType", "None")


def _shorten(message: str) -> str:
    return " ".join(message.split())[:300]
