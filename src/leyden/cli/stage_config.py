"""The config of one stage: what the file says, what is typed, and what other stages hand over."""

import inspect
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from leyden.cli.combine import read_combination
from leyden.cli.commands import Arguments, load_tree
from leyden.cli.config import ConfigError, Section, plain, set_option
from leyden.cli.quiet import only_measured
from leyden.cli.stages import FILE_KINDS, TRAINER_COMMANDS, Loop, Source, Stage, Stages

__all__ = ["ARGUMENTS", "MISSING", "Resolver", "check_stages", "network_section", "stage_tree"]

ARGUMENTS = "arguments"  # key of those of a combination or a function, beside the config
CONFIGURED = (*TRAINER_COMMANDS, "curate")  # what sets keys of a config
MISSING = object()  # nothing to be taken: the round before the first
LOGS = re.compile(r"\.log(_dict|_metrics)?\(")
EVALUATED = re.compile(r"[\"'](val|test)/")
PATHS = ("dirpath", "save_dir", "default_root_dir")
# source, loop and round and member of the taker -> value; `MISSING` leaves the key as it is
Resolver = Callable[[Source, Loop, int, int], Any]


def stage_tree(
    stages: Stages,
    options: list[tuple[str, str]],
    loop: Loop,
    stage: Stage,
    round_: int,
    member: int,
    resolve: Resolver,
) -> tuple[Section, list[Path]]:
    """Merges the config of a stage in one round, for one member; of a call, its arguments.

    Args:
        stages: the file.
        options: keys and values for all stages, typed.
        loop: of the stage.
        stage: the stage.
        round_: from 0.
        member: from 0.
        resolve: finds what is taken.

    Returns:
        The config (with arguments of a combination or an evaluation under `ARGUMENTS`), and the files that were named.

    Raises:
        ConfigError: something in it is wrong.
    """
    try:
        return _stage_tree(stages, options, loop, stage, round_, member, resolve)
    except ConfigError as error:
        raise _in_stage(stage, error) from error


def _stage_tree(
    stages: Stages,
    options: list[tuple[str, str]],
    loop: Loop,
    stage: Stage,
    round_: int,
    member: int,
    resolve: Resolver,
) -> tuple[Section, list[Path]]:
    values: dict[str, Any] = dict(stage.set)
    values |= {key: rounds[round_] for key, rounds in stage.by_round.items()}
    values |= {key: resolve(source, loop, round_, member) for key, source in stage.takes.items()}
    values = {key: value for key, value in values.items() if value is not MISSING}
    arguments = Section()
    if stage.run not in CONFIGURED:
        for key, value in values.items():
            arguments.put(key, value, stage.origin)
    if stage.run == "call":
        return arguments, []
    source = stage.checkpoints
    tree, files = Section(), [Path("-")]
    if source is not None and not stage.config:
        giver_loop, giver = stages.givers[source.stage]
        giver_round = round_ - 1 if source.before else round_ if giver_loop is loop else giver_loop.last_round
        tree, files = stage_tree(stages, options, giver_loop, giver, max(giver_round, 0), member, resolve)
        tree.pop(ARGUMENTS, None)
    else:
        names = [*stages.config, *stage.config]
        tree, files = load_tree(stage.run, Arguments(config=names))
        for key, value in stages.set:
            set_option(tree, key, _as_text(value))
    if stage.run in CONFIGURED:
        for key, value in values.items():
            set_option(tree, key, _as_text(value))
    else:
        tree.put(ARGUMENTS, arguments, stage.origin)
    if source is None or stage.config:
        for key, text in options:
            set_option(tree, key, text)
    if stages.measured:
        only_measured(tree)
    _use_one_device(tree)
    if stage.members is not None and "seed_everything" not in values:
        seed = str(tree.get("seed_everything", 0))
        if not seed.isdigit():
            raise ConfigError(f"members count their seeds from seed_everything, which must be a number, got {seed}")
        set_option(tree, "seed_everything", str(int(seed) + member))
    return tree, files


def network_section(tree: Section) -> dict[str, Any]:
    """The network in the config of a fit.

    Raises:
        ConfigError: it has none.
    """
    model = tree.get("model")
    network = model.get("init_args", {}).get("network") if isinstance(model, Section) else None
    if network is None:
        raise ConfigError("it gives a network, but its config has no model.network")
    return {"class_path": network} if isinstance(network, str) else plain(network)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # JSON is YAML


def _use_one_device(tree: Section) -> None:
    trainer = tree.get("trainer")
    if not isinstance(trainer, Section):
        return
    if trainer.get("devices") in (None, "auto"):
        set_option(tree, "trainer.devices", "1")
    if str(trainer["devices"]) != "1" or str(trainer.get("num_nodes", 1)) != "1":
        raise ConfigError("it asks for several devices, but a stage runs on one: trainer.devices must be 1")


def _in_stage(stage: Stage, error: Exception) -> ConfigError:
    message = " ".join(str(error).split()).removeprefix("command line: ")
    mark = f"{stage.origin}: {stage.name}: "
    return ConfigError(message if message.startswith(mark) else mark + message)


# ---- checks before the first stage


def check_stages(stages: Stages, options: list[tuple[str, str]], folder: Path) -> dict[str, dict[str, Any]]:
    """Parses the config of every stage, with stand-ins for what is taken, and checks what it gives and takes.

    Returns:
        The resolved configs by stage, in the last round.

    Raises:
        ConfigError: something would fail later.
    """
    written: dict[str, str] = {}
    configs: dict[str, dict[str, Any]] = {}
    for loop, stage in stages:
        # a later round takes all that there is to take; the values of `by_round` differ in each
        last = (loop.rounds or 2) - 1 if loop.repeats else 0
        for round_ in sorted({*(range(last + 1) if stage.by_round else ()), last}):
            tree, files = stage_tree(stages, options, loop, stage, round_, 0, _stand_ins(stages, options, folder))
            try:
                resolved = _check_stage(stage, tree, files)
                if stage.run in TRAINER_COMMANDS:
                    _check_paths(stage, loop, resolved, written)
                for key, source in stage.takes.items():
                    _check_kind(key, source, resolved)
            except (ConfigError, ImportError) as error:
                raise _in_stage(stage, error) from error
            configs[stage.name] = resolved
    return configs


def _check_stage(stage: Stage, tree: Section, files: list[Path]) -> dict[str, Any]:
    """Checks one stage's config and arguments, and returns them with defaults."""
    arguments = tree.pop(ARGUMENTS, tree)
    from leyden.cli.trainless_stages import check_function  # imports this file

    numbers = [name for name in stage.gives if name not in FILE_KINDS]
    if stage.run == "curate":
        from leyden.cli.curating import parse_curation

        resolved = parse_curation(tree).resolved
        curation = _load_class(resolved["curation"])
        if unknown := [name for name in numbers if name not in curation.numbers]:
            able = ", ".join(["a dataset", *curation.numbers])
            raise ConfigError(f"it gives {unknown[0]}, but {curation.__name__} gives {able} only")
        return resolved
    if stage.run == "call":
        assert stage.function is not None
        check_function(stage.function, [], {"folder": Path(), **arguments})
    else:
        command = stage.run
        if stage.run == "combine":
            metric = read_combination(arguments).metric
            command = "test" if (metric or "").startswith("test/") else "validate"
            if numbers and metric is None:
                raise ConfigError(f"it gives {numbers[0]}, but has no metric: set {{metric: {numbers[0]}}}")
        elif stage.run == "evaluate":
            command = "test"
            extra = {key: value for key, value in arguments.items() if key != "ckpt_path"}
            assert stage.function is not None
            check_function(stage.function, [None, None], extra)  # method, data
        resolved = _parse(command, tree, files)
        if stage.run != "evaluate":
            _check_metrics(stage, resolved, command, numbers)
            return resolved | ({"combine": plain(arguments)} if stage.run == "combine" else {})
    return {"class_path": stage.function, "init_args": arguments}


def _stand_ins(stages: Stages, options: list[tuple[str, str]], folder: Path) -> Resolver:
    def resolve(source: Source, taker: Loop, round_: int, member: int) -> Any:
        if source.stage in ("round", "member"):
            return round_ if source.stage == "round" else member
        if source.before and round_ == 0:
            return MISSING
        loop, giver = stages.givers[source.stage]
        value: Any = 0.5
        if source.what == "network":
            giver_round = round_ - 1 if source.before else loop.last_round
            tree, _ = stage_tree(stages, options, loop, giver, max(giver_round, 0), 0, resolve)
            try:
                network = network_section(tree)
            except ConfigError as error:
                raise _in_stage(giver, error) from error
            value = {"class_path": "leyden.models.pretrained", "init_args": {"network": network, "weights": "x"}}
        elif source.what in FILE_KINDS:
            value = str(folder / giver.name / source.what)
        return value if giver.members is None or source.same_member else [value] * giver.members

    return resolve


def _parse(command: str, tree: Section, files: list[Path]) -> dict[str, Any]:
    from leyden.cli.lightning import run_command

    printed = io.StringIO()
    with redirect_stdout(printed):
        run_command(command, tree, Arguments(print_config=True), files)
    return yaml.load(printed.getvalue(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _check_paths(stage: Stage, loop: Loop, resolved: dict[str, Any], written: dict[str, str]) -> None:
    """Folders that the config names itself: each run of a stage needs its own."""
    for path in {str(Path(path).absolute()) for path in _named_paths(resolved.get("trainer", {}))}:
        if loop.repeats or stage.members is not None:
            raise ConfigError(f"all its rounds and members would write the same files, in {path}: leave the path out")
        if path in written:
            raise ConfigError(f"it would write the same files as {written[path]}, in {path}: leave the path out")
        written[path] = stage.name


def _named_paths(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in PATHS and isinstance(value, str) and value != ".":
                yield value
            yield from _named_paths(value)
    elif isinstance(node, list):
        for item in node:
            yield from _named_paths(item)


def _check_kind(key: str, source: Source, resolved: dict[str, Any]) -> None:
    """Arguments that say by their type what kind of file they take get no other."""
    kind = source.what if source.what in FILE_KINDS else "number"
    wanted = _wanted_kinds(key, resolved)
    if wanted and kind not in wanted:
        raise ConfigError(f"{source.origin}: {key} takes {' or '.join(sorted(wanted))}, {source} is a {kind}")


def _wanted_kinds(key: str, resolved: dict[str, Any]) -> set[str]:
    """Kinds in the annotation of the argument that a key leads to; empty if it says nothing of it."""
    *parents, last = [part for part in key.split(".") if part != "init_args"]
    node: Any = resolved
    for part in parents:
        if isinstance(node, dict) and "class_path" in node:
            node = node.get("init_args", {})
        if isinstance(node, list):
            alike = [item for item in node if part == item["class_path"].rsplit(".", 1)[-1]]
            node = alike[0] if alike else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or "class_path" not in node:
        return set()
    module, _, name = node["class_path"].rpartition(".")
    target = getattr(import_module(module), name)
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    return {mark for mark in _leaves(hints.get(last)) if mark in FILE_KINDS}


def _leaves(annotation: Any) -> Iterator[str]:
    if isinstance(annotation, str):
        yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)
    yield from getattr(annotation, "__metadata__", ())


def _check_metrics(stage: Stage, resolved: dict[str, Any], command: str, numbers: list[str]) -> None:
    """Metrics of validation and test, where the method and the callbacks log no others than ``make_metrics`` says."""
    from leyden.core import Method

    method = _load_class(resolved["model"])
    callbacks = [_load_class(callback) for callback in resolved["trainer"].get("callbacks") or []]
    if not issubclass(method, Method):
        return
    classes = [*method.__mro__[: method.__mro__.index(Method)], *callbacks]
    try:
        if any(_may_log(cls) for cls in classes if not cls.__module__.startswith("lightning.")):
            return
        given = resolved["model"].get("init_args", {}).get("metrics") or {}
        names = ["loss", *method.make_metrics(method.__new__(method)), *given]
    except (AttributeError, OSError):  # metrics that depend on arguments, no source
        return
    for name in numbers:
        part = name.partition("/")[0]
        tested = part == "test" and (command == "test" or (command == "fit" and resolved["test_after_fit"]))
        validated = part == "val" and command in ("fit", "validate")
        known = [f"{part}/{known}" for known in names] if tested or validated else []
        if part in ("val", "test") and name not in known:
            logged = ", ".join(known) or f"no {part} metrics"
            raise ConfigError(f"it gives {name}, but a {stage.run} of it logs {logged}")


def _may_log(cls: type) -> bool:
    """Whether a class logs something that may be a metric of validation or test."""
    source = inspect.getsource(cls)
    only_training = "train/" in source and not EVALUATED.search(source)
    return LOGS.search(source) is not None and not only_training


def _load_class(node: dict[str, Any]) -> Any:
    module, _, name = node["class_path"].rpartition(".")
    return getattr(import_module(module), name)
