"""Config files: reading, merging, and changing them from the command line.

Files are merged as plain dicts before LightningCLI sees them, in this order: ``default.yaml``, the ``-c`` files as they
are named (each after the file that its ``base:`` names), the options. A later value wins. Mappings are merged; where
the ``class_path`` changes, the arguments of the class before are dropped; a list is replaced, and ``key+:`` adds to
one. A mapping given for a list of classes names its items by their class: ``callbacks: {EMA: {decay: 0.99}}`` changes
an argument, ``callbacks: {EMA: null}`` removes it.
"""

import copy
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

import leyden

__all__ = [
    "ConfigError",
    "Section",
    "config_folder",
    "find_config",
    "merge",
    "merge_file",
    "plain",
    "read_config",
    "set_option",
]

COMMAND_LINE = "command line"
# Lists in which a plain value would silently lose what default.yaml put there.
GUARDED = ("callbacks", "plugins")


class ConfigError(ValueError):
    """A config file or option is wrong; the message is one line that says where."""


class Section(dict[str, Any]):
    """A mapping of a config that knows where each of its keys was written.

    Attributes:
        origin: ``file:line`` or ``command line`` by key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[str, str] = {}

    def put(self, key: str, value: Any, origin: str) -> None:
        """Sets a value and notes where it was written."""
        self[key] = value
        self.origin[key] = origin


def config_folder() -> Path:
    """Folder of the configs: that of the working folder if it has a ``default.yaml``, else that of the checkout."""
    here = Path("configs")
    return here if (here / "default.yaml").is_file() else Path(leyden.__file__).parents[2] / "configs"


def find_config(name: str) -> Path:
    """Finds a config file.

    Args:
        name: a path, or a name below ``configs/`` or ``configs/experiment/``, with or without ``.yaml``.

    Raises:
        ConfigError: there is none; the message has near names.
    """
    folder = config_folder()
    for path in (Path(name), folder / name, folder / "experiment" / name):
        for candidate in (path, path.with_name(f"{path.name}.yaml")):
            if candidate.is_file():
                return candidate
    known = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]
    known = [path.removeprefix("experiment/") for path in known]
    wanted = Path(name).with_suffix("")
    near = get_close_matches(wanted.as_posix(), known, n=2)
    last_parts = get_close_matches(wanted.name, {Path(other).name for other in known}, n=2)
    near += [other for other in known if Path(other).name in last_parts and other not in near]
    raise ConfigError(f"there is no config file {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def read_config(path: Path) -> Section:
    """Reads a YAML file.

    Raises:
        ConfigError: it is no valid YAML, or no mapping, or has a key twice.
    """
    shown = _shown(path)
    try:
        return _as_section(_load_yaml(path.read_text(), shown), shown)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}:{mark.line + 1}" if mark else shown
        raise ConfigError(f"{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from error


def merge_file(base: Section, overlay: Section, *, above: tuple[str, ...] = ()) -> Section:
    """Puts a config file over what was read before it.

    A file with ``base: FILE`` builds on that file, as an experiment does on its baseline, which is read first. A file
    marked ``standalone: true`` (as every ``config.yaml`` of a run folder is) is the whole config: nothing of what was
    read before is left.

    Raises:
        ConfigError: a plain ``callbacks:`` or ``plugins:`` would drop those of the base; a file builds on itself, or
            has stages.
    """
    if "stages" in overlay:
        raise ConfigError(f"{overlay.origin['stages']}: stages of several fits are run by leyden run FILE")
    if overlay.pop("standalone", False):
        return overlay
    if (name := overlay.pop("base", None)) is not None:
        below = find_config(str(name))
        if below.as_posix() in above:
            raise ConfigError(
                f"{overlay.origin['base']}: the file builds on itself: {' -> '.join([*above, str(below)])}"
            )
        base = merge_file(base, read_config(below), above=(*above, below.as_posix()))
    trainer, before = overlay.get("trainer"), base.get("trainer")
    for key in GUARDED:
        if not isinstance(trainer, Section) or key not in trainer or not isinstance(before, Section):
            continue
        items = before.get(key)
        if isinstance(items, list) and items and not _names_items(trainer[key]):
            names = ", ".join(_item_names(items))
            raise ConfigError(
                f"{trainer.origin[key]}: a plain '{key}:' would drop what was there before ({names}); "
                f"write '{key}+:' to add, or '{key}: {{NAME: null}}' to remove one"
            )
    merge(base, overlay)
    return base


def merge(base: Section, overlay: Section) -> None:
    """Merges a section into another, in place; the rules are on top of this file.

    Raises:
        ConfigError: ``key+:`` stands for something that is no list, or a named item is not there.
    """
    for key, value in overlay.items():
        origin = overlay.origin.get(key, "")
        if isinstance(key, str) and key.endswith("+"):
            _append(base, key[:-1], value, origin)
            continue
        old = base.get(key)
        if isinstance(value, Section) and isinstance(old, str) and "init_args" in value and "class_path" not in value:
            old = base[key] = _class_section(old, base.origin.get(key, ""))
        if isinstance(old, list) and _names_items(value):
            for name, change in value.items():
                _change_item(old, name, change, value.origin.get(name, origin), key)
        elif isinstance(value, Section):
            if not isinstance(old, Section) or value.get("class_path", old.get("class_path")) != old.get("class_path"):
                old = Section()
                base.put(key, old, origin)
            merge(old, value)
        else:
            base.put(key, copy.deepcopy(value), origin)


def set_option(tree: Section, key: str, text: str) -> None:
    """Applies ``--key=text`` of the command line.

    ``init_args`` may be left out of the key, and an item of a list is named by its class (a second one of a class as
    ``EMA_2``): ``trainer.callbacks.EMA.decay``. ``key+`` adds to a list.

    Args:
        tree: the merged config, changed in place.
        key: names joined by dots.
        text: the value, in YAML.

    Raises:
        ConfigError: the key leads through something that has no parts.
    """
    try:
        value = _load_yaml(text, COMMAND_LINE)
    except yaml.YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: --{key}: no valid YAML: {text!r}") from error
    if not isinstance(value, Section | list) and value is not None:
        value = text  # jsonargparse knows the type, and so whether 12 is a number or a name
    node: Any = tree
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        node = _descend(node, part, ".".join(parents[:depth]))
    path = ".".join(parents)
    if isinstance(node, list):
        _change_item(node, last, value, COMMAND_LINE, path)
        return
    node = _argument_section(node, last)
    is_class = isinstance(node.get(last), Section) and "class_path" in node[last]
    if key == "trainer.strategy" and isinstance(value, str):
        is_class = "." in value  # others are Lightning's short names
    if is_class and isinstance(value, str):
        value = _class_section(value, COMMAND_LINE)  # another class in the place of this one
    change = Section()
    change.put(last, value, COMMAND_LINE)
    merge(node, change)


def plain(tree: Any) -> Any:
    """Copies a config as dicts and lists, without origins."""
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list) else tree


def _append(base: Section, key: str, value: Any, origin: str) -> None:
    old = base.get(key)
    if old is None:
        old = []
    elif isinstance(old, Section | str):
        old = [old]  # a single one, given without list
    if not isinstance(old, list):
        raise ConfigError(f"{origin}: '{key}+' adds to a list, but {key} is {old!r}")
    added = value if isinstance(value, list) else [value]
    base.put(key, [*old, *copy.deepcopy(added)], origin)


def _change_item(items: list[Any], name: str, change: Any, origin: str, path: str) -> None:
    index = _find_item(items, name, path, origin)
    if change is None:
        del items[index]
        return
    if not isinstance(change, Section):
        raise ConfigError(f"{origin}: {path}.{name} is a class: set one of its arguments ({path}.{name}.ARGUMENT)")
    if isinstance(items[index], str):
        items[index] = _class_section(items[index], origin)
    arguments = items[index].get("init_args")
    if not isinstance(arguments, Section):
        arguments = Section()
        items[index].put("init_args", arguments, origin)
    merge(arguments, change)


def _descend(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        index = _find_item(node, part, path, COMMAND_LINE)
        if isinstance(node[index], str):
            node[index] = _class_section(node[index], COMMAND_LINE)
        return node[index]
    node = _argument_section(node, part)
    child = node.get(part)
    if child is None:
        child = Section()
    elif isinstance(child, str):
        child = _class_section(child, node.origin.get(part, ""))
    elif not isinstance(child, Section | list):
        whole = f"{path}.{part}".removeprefix(".")
        raise ConfigError(f"{COMMAND_LINE}: {whole} is {child!r}, which has no parts to be set")
    node.put(part, child, node.origin.get(part, COMMAND_LINE))
    return child


def _argument_section(node: Section, part: str) -> Section:
    """The section that holds a key: of a class its ``init_args``, unless they are meant themselves."""
    if "class_path" not in node or part.rstrip("+") in ("class_path", "init_args", "dict_kwargs"):
        return node
    if not isinstance(node.get("init_args"), Section):
        node.put("init_args", Section(), COMMAND_LINE)
    return node["init_args"]


def _find_item(items: list[Any], name: str, path: str, origin: str) -> int:
    names = _item_names(items)
    if name in names:
        return names.index(name)
    near = get_close_matches(name, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names) or 'none'}"
    raise ConfigError(f"{origin}: {path} has no {name!r}; {advice}")


def _item_names(items: list[Any]) -> list[str]:
    names: list[str] = []
    for number, item in enumerate(items):
        alike = [_class_name(other) for other in items[: number + 1]].count(_class_name(item))
        names.append(_class_name(item) + (f"_{alike}" if alike > 1 else ""))
    return names


def _class_name(item: Any) -> str:
    path = item.get("class_path", "") if isinstance(item, Section) else item
    return str(path).rsplit(".", 1)[-1]


def _names_items(value: Any) -> bool:
    return isinstance(value, Section) and "class_path" not in value


def _class_section(path: str, origin: str) -> Section:
    section = Section()
    section.put("class_path", path, origin)
    return section


def _as_section(value: Any, shown: str) -> Section:
    if value is None:
        return Section()
    if not isinstance(value, Section):
        raise ConfigError(f"{shown}: a config file is a mapping of keys to values, not a {type(value).__name__}")
    return value


def _shown(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _load_yaml(text: str, name: str) -> Any:
    loader = _Loader(text)
    loader.shown = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    shown = ""

    def section(self, node: yaml.MappingNode) -> Section:
        written: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in written and key_node.tag != "tag:yaml.org,2002:merge":
                raise ConfigError(f"{self._where(key_node)}: the key {key_node.value!r} is given twice")
            written.add(key_node.value)
        self.flatten_mapping(node)
        section = Section()
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            section.put(key, self.construct_object(value_node, deep=True), self._where(key_node))
        return section

    def _where(self, node: yaml.Node) -> str:
        return self.shown if self.shown == COMMAND_LINE else f"{self.shown}:{node.start_mark.line + 1}"


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.section)
# YAML 1.1 reads 1e-3 as text, because it has no point
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
