"""The JSON Schema of config files, read off the classes that can stand in them.

A place takes a class by its path, alone or with arguments. Places are described by the base class that they ask for;
the classes are those of `ROOMS`. A path outside of these rooms is one of your own, whose arguments are not known here.
The schema is of draft 7, which is what YAML editors read.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from leyden.cli.config import config_folder
from leyden.cli.diagnosis import ROOMS, parser_of
from leyden.cli.stages import FILE_KINDS, GIVEN_FILES

__all__ = ["config_schema"]

Schema = dict[str, Any]
MORE_ROOMS = ("lightning.pytorch.profilers", "lightning.pytorch.strategies")
PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null"}
ANY_PATH = r"^[A-Za-z_]\w*(\.\w+)+$"


def config_schema() -> Schema:
    """Makes the schema of config files, and of stages files, which have ``stages``; sweep files are let pass."""
    builder = _Builder()
    config = builder.config()
    builder.fill_in_partial()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Config of Leyden",
        "if": {"required": ["stages"]},
        "then": _stages(),
        "else": {"if": {"required": ["parameters"]}, "then": {}, "else": config},
        "definitions": builder.definitions,
    }


class _Builder:
    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._components = _public_components()
        self._partial: list[tuple[Schema, list[str]]] = []

    def config(self) -> Schema:
        """A config file."""
        names = _config_names()
        properties = {
            "base": {"description": "the config that this one builds on", "anyOf": [{"enum": names}, _plain(str)]},
            "standalone": {"description": "whether this is the whole config", **_plain(bool)},
            "seed_everything": {"description": "of data order, weights, dropout", "type": ["integer", "boolean"]},
            "test_after_fit": {"description": "test the best weights after a fit", "default": True, **_plain(bool)},
            "model": self.place(LightningModule),
            "data": self.place(LightningDataModule),
            "trainer": self.arguments(Trainer),
            "evaluate": _evaluator(),
            "ckpt_path": {"description": "checkpoint to go on from or to evaluate", "type": ["string", "null"]},
            "weights_only": {"type": ["boolean", "null"]},
            "verbose": _plain(bool),
            "return_predictions": {"type": ["boolean", "null"]},
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def arguments(self, component: Any) -> Schema:
        """Mapping of the arguments of a class or function; ``key+`` adds to a list."""
        name = f"arguments:{component.__module__}.{component.__qualname__}"
        if name not in self.definitions:
            self.definitions[name] = {}  # where it holds itself
            properties: dict[str, Schema] = {}
            for action in parser_of(component)._actions:
                if action.dest == "help" or action.dest.endswith(".help"):
                    continue
                hint = getattr(action, "_typehint", action.type)
                properties[action.dest] = _described(self.value(hint), action.help, action.default)
                if _item_type(hint) is not None:
                    properties[f"{action.dest}+"] = {"description": "to be added", **self.added(hint)}
            self.definitions[name] = {
                "type": ["object", "null"],
                "properties": properties,
                "additionalProperties": False,
            }
        return {"$ref": f"#/definitions/{name}"}

    def value(self, hint: Any) -> Schema:
        """A value of a type."""
        origin, parts = get_origin(hint), get_args(hint)
        if hint in PLAIN:
            return _plain(hint)
        if origin is Annotated:
            return self.value(parts[0])
        if origin is Literal:
            return {"enum": list(parts)}
        if origin in (Union, types.UnionType):
            choices = [self.value(part) for part in parts]
            items = [item for part in parts if (item := _item_type(part)) is not None]
            bases = [base for item in items for base in (get_args(item) or (item,)) if _is_component(base)]
            return {} if {} in choices else {"anyOf": _unique([*choices, *map(self.changes, bases)])}
        if origin is Callable or origin is types.FunctionType:
            return self.value(parts[-1]) if parts and _is_component(parts[-1]) else {}
        if origin is tuple and parts and parts[-1] is not ...:
            size = {"minItems": len(parts), "maxItems": len(parts)}
            return {"type": "array", "items": [self.value(part) for part in parts], **size}
        if (item := _item_type(hint)) is not None:
            array = {"type": "array", "items": self.value(item)}
            return {"anyOf": [array, self.changes(item)]} if _is_component(item) else array
        if inspect.isclass(origin) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.value(parts[1]) if parts else {}}
        if origin is type:
            return {"type": "string", "pattern": ANY_PATH}
        if inspect.isclass(hint) and issubclass(hint, Enum):
            return {"enum": [member.name for member in hint]}
        return self.place(hint) if _is_component(hint) else {}

    def added(self, hint: Any) -> Schema:
        """What ``key+`` takes: one item or several."""
        item = self.value(_item_type(hint))
        return {"anyOf": [item, {"type": "array", "items": item}]}

    def place(self, base: type) -> Schema:
        """A class that is one of a base: its path, or its path and arguments."""
        name = f"{base.__module__}.{base.__qualname__}"
        if f"place:{name}" not in self.definitions:
            self.definitions[f"place:{name}"] = {}  # where it holds itself
            found = self._candidates(base)
            path, node = f"path:{name}", f"node:{name}"
            self.definitions[path] = _paths(found)
            self.definitions[node] = self._node(path, found)
            self.definitions[f"place:{name}"] = {
                "type": ["string", "object"],
                "if": {"type": "string"},
                "then": {"$ref": f"#/definitions/{path}"},
                "else": {"$ref": f"#/definitions/{node}"},
            }
        return {"$ref": f"#/definitions/place:{name}"}

    def changes(self, base: type) -> Schema:
        """Changes of the items of a list of classes, by their names."""
        name = f"changes:{base.__module__}.{base.__qualname__}"
        if name not in self.definitions:
            self.definitions[name] = {}
            named = {path.rsplit(".", 1)[-1]: self.arguments(part) for path, part in self._candidates(base).items()}
            seconds = {f"^{short}_[2-9]$": arguments for short, arguments in named.items()}
            self.definitions[name] = {
                "type": "object",
                "description": "changes arguments of the classes in this list; null removes one",
                "properties": {"class_path": False, "init_args": False, **named},
                "patternProperties": seconds,
            }
        return {"$ref": f"#/definitions/{name}"}

    def _node(self, path: str, found: dict[str, Any]) -> Schema:
        cases = [
            {
                "if": {"required": ["class_path"], "properties": {"class_path": {"const": name}}},
                "then": {"properties": {"init_args": self.arguments(component)}},
            }
            for name, component in found.items()
        ]
        return {
            "type": "object",
            "properties": {
                "class_path": {"$ref": f"#/definitions/{path}"},
                "init_args": {"type": ["object", "null"]},
                "dict_kwargs": {"type": "object"},
            },
            "additionalProperties": False,
            "allOf": [*cases, {"if": {"not": {"required": ["class_path"]}}, "then": self._some_arguments(found)}],
        }

    def _some_arguments(self, found: dict[str, Any]) -> Schema:
        """Arguments for the class that a file below this one names: those of any."""
        properties: Schema = {}
        self._partial.append((properties, [self.arguments(component)["$ref"] for component in found.values()]))
        return {"properties": {"init_args": {"properties": properties}}}

    def fill_in_partial(self) -> None:
        """Writes what waited until the arguments of all classes were known."""
        for properties, references in self._partial:
            choices: dict[str, list[Schema]] = {}
            for reference in references:
                for name, schema in self.definitions[reference.removeprefix("#/definitions/")]["properties"].items():
                    choices.setdefault(name, []).append(schema)
            for name, schemas in choices.items():
                properties[name] = {"anyOf": _unique(schemas)}

    def _candidates(self, base: type) -> dict[str, Any]:
        return {path: part for path, part in self._components.items() if _makes(part, base)}


def _public_components() -> dict[str, Any]:
    found = {}
    for room in (*ROOMS, *MORE_ROOMS):
        module = import_module(room)
        for name in dir(module):
            part = getattr(module, name, None)
            if not name.startswith("_") and (inspect.isclass(part) or inspect.isfunction(part)):
                found[f"{room}.{name}"] = part
    losses = {name: part for name, part in vars(nn).items() if name.endswith("Loss")}
    return found | {f"torch.nn.{name}": part for name, part in losses.items()}


def _makes(part: Any, base: type) -> bool:
    """Whether a class is one of a base, or a function returns one."""
    if inspect.isclass(part):
        return issubclass(part, base) and not inspect.isabstract(part)
    try:
        returned = get_type_hints(part).get("return")
    except NameError:  # imported for type checkers only
        return False
    return inspect.isclass(returned) and issubclass(returned, base) and base is not nn.Module


def _is_component(hint: Any) -> bool:
    return inspect.isclass(hint) and f"{hint.__module__}.".startswith(
        ("leyden.", "lightning.", "torch.optim.", "torch.nn.modules.")
    )


def _item_type(hint: Any) -> Any:
    """Type of the items of a list, also of one that is one of several choices; None if it is none."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return next((item for part in parts if (item := _item_type(part)) is not None), None)
    if origin is tuple:
        return parts[0] if len(parts) == 2 and parts[1] is ... else None
    is_list = inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)
    return parts[0] if is_list and parts else None


def _paths(found: dict[str, Any]) -> Schema:
    own = {
        "type": "string",
        "pattern": ANY_PATH,
        "not": {"pattern": rf"^({'|'.join(re.escape(room) for room in (*ROOMS, *MORE_ROOMS))})\.\w+$"},
        "description": "a class of your own",
    }
    return {"anyOf": [*({"const": path, "description": _summary(part)} for path, part in found.items()), own]}


def _summary(part: Any) -> str:
    return (inspect.getdoc(part) or "").strip().split("\n\n")[0].replace("\n", " ")


def _described(schema: Schema, text: str | None, default: Any) -> Schema:
    # beside $ref nothing is read in draft 7
    described: Schema = {"allOf": [schema]} if "$ref" in schema else dict(schema)
    if text:
        described["description"] = " ".join(text.split())
    try:
        json.dumps(default)
    except TypeError:
        return described
    return described if default is None else {**described, "default": default}


def _plain(kind: type) -> Schema:
    return {"type": PLAIN[kind]}


def _unique(schemas: list[Schema]) -> list[Schema]:
    return [schema for number, schema in enumerate(schemas) if schema not in schemas[:number]]


def _config_names() -> list[str]:
    folder = config_folder()
    paths = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]
    return [path.removeprefix("experiment/") for path in paths if not path.startswith(("stages/", "sweep/"))]


def _evaluator() -> Schema:
    """What `leyden compare` evaluates a fit with."""
    function = {"type": "string", "pattern": ANY_PATH}
    return {
        "type": "object",
        "description": "a function that leyden compare calls with the best weights",
        "properties": {"function": function, "arguments": {"type": "object"}},
        "additionalProperties": False,
    }


def _stages() -> Schema:
    """A stages file."""
    name = {"anyOf": [{"enum": _config_names()}, _plain(str)]}
    names = {"anyOf": [name, {"type": "array", "items": name}]}
    given = {"anyOf": [{"enum": list(FILE_KINDS)}, _plain(str)]}
    count = {"type": "integer", "minimum": 1}
    stage: Schema = {
        "run": {"enum": list(GIVEN_FILES), "default": "fit", "description": "the command, or a call of a function"},
        "config": {**names, "description": "as -c of leyden fit"},
        "set": {"type": "object", "description": "values by key, as on the command line"},
        "gives": {"anyOf": [given, {"type": "array", "items": given}], "description": "files, or names of metrics"},
        "takes": {"type": "object", "additionalProperties": _plain(str), "description": "KEY: STAGE.WHAT"},
        "members": {**count, "description": "so many, in seeds that follow each other"},
        "function": {"type": "string", "pattern": ANY_PATH, "description": "function of a call"},
        "by_round": {"type": "object", "additionalProperties": {"type": "array"}},
        "rounds": {**count, "description": "how often it is repeated"},
        "until": {"type": "string", "description": "STAGE.METRIC > NUMBER"},
    }
    one = {"type": ["object", "null"], "properties": stage, "additionalProperties": False}
    repeated = {**one, "properties": {**stage, "stages": {"type": "object", "additionalProperties": one}}}
    properties = {
        "config": {**names, "description": "of all stages"},
        "set": {"type": "object", "description": "values by key, of all stages"},
        "stages": {"type": "object", "additionalProperties": repeated, "minProperties": 1},
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}
