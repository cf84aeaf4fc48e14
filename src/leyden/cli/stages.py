"""The file of a run made of several fits: stages one after another, some in rounds, some with several members.

::

    stages:
      teacher:
        set: {model.network.width: 32}
        gives: [network]
      student:
        set: {trainer.callbacks+: leyden.callbacks.Distillation}
        takes: {trainer.callbacks.Distillation.teacher: teacher.network}

Keys of a stage: ``run`` (``fit``, ``validate``, ``test``, ``predict``, ``combine``, ``curate``, ``evaluate`` or
``call``), ``config`` (names as ``-c`` takes them), ``set`` (keys as on the command line; arguments, where there is no
config), ``gives``, ``takes`` (``KEY: STAGE.WHAT``, or ``KEY: round`` or ``member``), ``members`` (so many, in seeds
that follow each other), ``function`` of a call (``function(folder, **arguments)``) or of an ``evaluate``
(``function(method, data, **arguments)``, which trains nothing). A stage with ``rounds``, ``until`` (``STAGE.METRIC >
NUMBER``) or both is repeated, and may have ``stages`` inside; there ``before.STAGE.WHAT`` is what the round before
gave (nothing in the first), and ``by_round`` has a list of values per key. Of a stage with members a list is given, or
by ``member.STAGE.WHAT`` what the member of the same number gives. Top-level ``config`` and ``set`` hold for all
stages. What a stage gives is a kind of file (``weights``, ``network``, ``checkpoint``, ``dataset``) or, by any other
name, a number, which is a metric unless a function returns it. A stage that takes a ``ckpt_path`` (of a ``combine``:
``ckpts``) and has no ``config`` has that of the stage which gives it.
"""

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from leyden.cli.config import ConfigError, Section, config_folder, plain, read_config

__all__ = [
    "COMPARISONS",
    "FILE_KINDS",
    "TRAINER_COMMANDS",
    "Loop",
    "Source",
    "Stage",
    "Stages",
    "read_stages",
    "stages_name",
]

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FILE_KINDS = ("weights", "network", "checkpoint", "dataset")
GIVEN_FILES: dict[str, tuple[str, ...]] = {
    "fit": ("weights", "network", "checkpoint"),
    "validate": (),
    "test": (),
    "predict": ("dataset",),
    "combine": ("weights", "network", "checkpoint"),
    "curate": ("dataset",),
    "evaluate": (),
    "call": ("weights", "dataset"),
}
FUNCTIONS = ("call", "evaluate")  # what has a function
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
# the key by which a stage takes the checkpoints whose config it has, if it names none
CHECKPOINT_KEYS = dict.fromkeys((*TRAINER_COMMANDS, "evaluate"), "ckpt_path") | {"combine": "ckpts"}
Setting = tuple[str, Any]
COUNTERS = ("round", "member")
STAGE_KEYS = ("run", "config", "set", "gives", "takes", "members", "function", "rounds", "until", "by_round", "stages")
LOOP_KEYS = ("rounds", "until", "stages")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Source:
    """What a stage takes.

    Attributes:
        stage: name of the giver; ``round`` or ``member`` for these numbers.
        what: what of it; empty for the numbers.
        before: whether it is of the round before.
        origin: where it was written.
        same_member: whether it is of the member of the taker's number, and not a list of what all members give.
    """

    stage: str
    what: str
    before: bool
    origin: str
    same_member: bool = False

    def __str__(self) -> str:
        prefix = "before." * self.before + "member." * self.same_member
        return prefix + self.stage + (f".{self.what}" if self.what else "")


@dataclass
class Stage:
    """One stage; the attributes are the keys of the file.

    Attributes:
        name: of the stage.
        origin: where it was written.
        run: the command.
        config: names of config files.
        set: keys and values.
        gives: names of what it gives.
        takes: sources by key.
        members: number of members; None for a stage that is one.
        function: import path of the function of a call or an evaluation.
        by_round: list of values by key.
    """

    name: str
    origin: str
    run: str
    config: list[str]
    set: list[Setting]
    gives: list[str]
    takes: dict[str, Source]
    members: int | None
    function: str | None
    by_round: dict[str, list[Any]]

    @property
    def checkpoints(self) -> Source | None:
        """Where the checkpoints come from that it evaluates or combines."""
        return self.takes.get(CHECKPOINT_KEYS.get(self.run, ""))


@dataclass
class Loop:
    """Stages that run once, or in rounds.

    Attributes:
        name: of the stage in the file.
        origin: where it was written.
        stages: what a round is.
        repeats: whether there are rounds.
        rounds: their greatest number; None if only ``until`` ends them.
        until: source, comparison and number that end the rounds.
        ended: number of the last round, once it has ended.
    """

    name: str
    origin: str
    stages: list[Stage]
    repeats: bool = False
    rounds: int | None = 1
    until: tuple[Source, str, float] | None = None
    ended: int | None = None

    @property
    def last_round(self) -> int:
        """Number of the last round, as far as it is known."""
        return (self.rounds or 1) - 1 if self.ended is None else self.ended

    def folder(self, stage: Stage, round_: int) -> str:
        """Folder of a stage below that of the run, without member."""
        if not self.repeats:
            return stage.name
        round_folder = f"{self.name}/round-{round_}"
        return round_folder if stage.name == self.name else f"{round_folder}/{stage.name}"


@dataclass
class Stages:
    """A stages file.

    Attributes:
        path: the file.
        config: names of config files of all stages.
        set: keys and values of all stages.
        loops: in order.
        givers: the stages by name, with their loop.
        measured: whether what only shows a run is left out of all configs.
    """

    path: Path
    config: list[str]
    set: list[Setting]
    loops: list[Loop] = field(default_factory=list)
    givers: dict[str, tuple[Loop, Stage]] = field(default_factory=dict)
    measured: bool = False

    def __iter__(self) -> Iterator[tuple[Loop, Stage]]:
        return iter(self.givers.values())


def stages_name(path: Path) -> str:
    """Name of the runs of a file: its path below ``configs/stages``, or else its own name, without ``.yaml``."""
    folder = (config_folder() / "stages").resolve()
    path = path.resolve()
    return path.relative_to(folder).with_suffix("").as_posix() if path.is_relative_to(folder) else path.stem


def read_stages(path: Path) -> Stages:
    """Reads a stages file and checks all that can be known without the configs.

    Raises:
        ConfigError: something in it is wrong.
    """
    file = read_config(path)
    _check_keys(file, ("stages", "config", "set"), str(path))
    stages = Stages(path, _names(file, "config"), _settings(file, str(path)))
    sections = _section(file, "stages", str(path))
    if not sections:
        raise ConfigError(f"{path}: it has no stages: write 'stages: {{NAME: {{...}}}}'")
    for name, section in sections.items():
        loop = _read_loop(name, section, sections.origin[name])
        stages.loops.append(loop)
        for stage in loop.stages:
            if stage.name in stages.givers or (stage.name != name and stage.name in sections):
                raise ConfigError(f"{stage.origin}: there is another stage {stage.name!r}: names must differ")
            stages.givers[stage.name] = loop, stage
    _check_references(stages)
    return stages


# ---- reading


def _read_loop(name: str, section: Any, origin: str) -> Loop:
    section = _stage_section(name, section, origin)
    if "stages" not in section:
        loop = Loop(name, origin, [_read_stage(name, section, origin)])
    else:
        if stray := [key for key in section if key not in LOOP_KEYS]:
            raise ConfigError(f"{section.origin[stray[0]]}: {stray[0]!r} belongs to one of the stages in {name}")
        inner = _section(section, "stages", origin)
        loop = Loop(name, origin, [])
        for child, value in inner.items():
            child_section = _stage_section(child, value, inner.origin[child])
            if stray := [key for key in child_section if key in LOOP_KEYS]:
                raise ConfigError(f"{child_section.origin[stray[0]]}: rounds within rounds: {child} cannot repeat")
            loop.stages.append(_read_stage(child, child_section, inner.origin[child]))
        if not loop.stages or not {"rounds", "until"} & section.keys():
            raise ConfigError(f"{origin}: {name} needs stages, and rounds or until")
    loop.repeats = "rounds" in section or "until" in section
    if loop.repeats:
        loop.rounds = _count(section, "rounds") if "rounds" in section else None
    if "until" in section:
        loop.until = _condition(section["until"], section.origin["until"])
    for stage in loop.stages:
        for key, values in stage.by_round.items():
            if not loop.repeats or loop.rounds is None or not isinstance(values, list) or len(values) != loop.rounds:
                raise ConfigError(
                    f"{stage.origin}: by_round of {stage.name} needs one value per round for {key}: "
                    f"a list of {loop.rounds if loop.repeats else 'no'} values"
                )
    return loop


def _read_stage(name: str, section: Section, origin: str) -> Stage:
    run = section.get("run", "fit")
    if run not in GIVEN_FILES:
        raise ConfigError(f"{section.origin['run']}: run must be one of {', '.join(GIVEN_FILES)}, got {run!r}")
    if (run in FUNCTIONS) != ("function" in section):
        raise ConfigError(f"{origin}: {name}: a stage has a function if it is a call or an evaluate, and only then")
    takes_section = _section(section, "takes", origin)
    takes = {key: _source(text, takes_section.origin[key]) for key, text in takes_section.items()}
    stage = Stage(
        name,
        origin,
        run,
        _names(section, "config"),
        _settings(section, origin),
        _names(section, "gives"),
        takes,
        _count(section, "members") if "members" in section else None,
        section.get("function"),
        plain(_section(section, "by_round", origin)),
    )
    for given in stage.gives:
        if given in FILE_KINDS and given not in GIVEN_FILES[run]:
            able = ", ".join([*GIVEN_FILES[run], "numbers" if run in FUNCTIONS else "metrics"])
            raise ConfigError(f"{section.origin['gives']}: {name} is a {run}, which gives no {given}, only {able}")
    if run in ("combine", "evaluate") and stage.checkpoints is None:
        raise ConfigError(f"{origin}: {name}: a stage that runs {run} takes {CHECKPOINT_KEYS[run]}: STAGE.checkpoint")
    for key in takes:
        if key in dict(stage.set) or key in stage.by_round:
            raise ConfigError(f"{takes_section.origin[key]}: {key} of {name} is set twice")
    return stage


def _stage_section(name: Any, value: Any, origin: str) -> Section:
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in ("before", *COUNTERS):
        raise ConfigError(
            f"{origin}: {name!r} cannot be a stage's name: letters, digits, - and _, but no word of the "
            f"format (before, {', '.join(COUNTERS)})"
        )
    section = Section() if value is None else value
    if not isinstance(section, Section):
        raise ConfigError(f"{origin}: the stage {name} must be a mapping, got {value!r}")
    _check_keys(section, STAGE_KEYS, origin)
    return section


def _check_keys(section: Section, known: tuple[str, ...], origin: str) -> None:
    for key in section:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"{section.origin.get(key, origin)}: there is no key {key!r}; {advice}")


def _section(parent: Section, key: str, origin: str) -> Section:
    value = parent.get(key)
    if value is None:
        return Section()
    if not isinstance(value, Section):
        raise ConfigError(f"{parent.origin.get(key, origin)}: {key} must be a mapping, got {value!r}")
    return value


def _settings(section: Section, origin: str) -> list[Setting]:
    return list(plain(_section(section, "set", origin)).items())


def _names(section: Section, key: str) -> list[str]:
    value = section.get(key, [])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{section.origin[key]}: {key} must be a name or a list of names, got {plain(value)!r}")
    return names


def _count(section: Section, key: str) -> int:
    value = section[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{section.origin[key]}: {key} must be a number from 1 on, got {value!r}")
    return value


def _source(text: Any, origin: str) -> Source:
    if text in COUNTERS:
        return Source(text, "", False, origin)
    rest = str(text)
    before, same_member = (rest.startswith(f"{word}.") for word in ("before", "member"))
    if before or same_member:
        _, _, rest = rest.partition(".")
    stage, _, what = rest.partition(".")
    if not stage or not what:
        raise ConfigError(
            f"{origin}: {text!r} is nothing to be taken: write STAGE.WHAT, before.STAGE.WHAT, member.STAGE.WHAT, "
            f"{' or '.join(COUNTERS)}"
        )
    return Source(stage, what, before, origin, same_member)


def _condition(text: Any, origin: str) -> tuple[Source, str, float]:
    match = re.fullmatch(r"\s*(\S+)\s*(>=|<=|>|<)\s*(\S+)\s*", str(text))
    try:
        number = float(match[3]) if match else None
    except ValueError:
        number = None
    if match is None or number is None:
        raise ConfigError(f"{origin}: until must be 'STAGE.METRIC > NUMBER' (or <, >=, <=), got {text!r}")
    return _source(match[1], origin), match[2], number


# ---- who gives what to whom


def _check_references(stages: Stages) -> None:
    order = list(stages.givers)
    for loop, stage in stages:
        for key, source in stage.takes.items():
            if source.stage == "round" and not loop.repeats:
                raise ConfigError(f"{source.origin}: {stage.name} takes its round for {key}, but has no rounds")
            if source.stage == "member" and stage.members is None:
                raise ConfigError(f"{source.origin}: {stage.name} takes its member for {key}, but has no members")
            if source.stage in COUNTERS:
                continue
            giver_loop, giver = _giver(stages, source, stage.name)
            later = order.index(giver.name) >= order.index(stage.name)
            if source.same_member and (stage.members is None or stage.members != giver.members):
                raise ConfigError(f"{source.origin}: {source}: {stage.name} and {giver.name} have not as many members")
            if source.before and (giver_loop is not loop or not loop.repeats):
                raise ConfigError(f"{source.origin}: {source}: {stage.name} and {giver.name} have no rounds in common")
            if later and not source.before:
                what = "itself" if giver is stage else f"{giver.name}, which comes after it"
                back = _takes_from(stages, giver, stage.name)
                why = f", and {giver.name} from {stage.name}: a cycle" if giver is not stage and back else ""
                hint = (
                    f"; of the round before it would be before.{source}" if giver_loop is loop and loop.repeats else ""
                )
                raise ConfigError(f"{source.origin}: {stage.name} takes {source} from {what}{why}{hint}")
            takes_checkpoint = key == CHECKPOINT_KEYS.get(stage.run)
            takes_checkpoint |= stage.run == "combine" and key in ("base", "onto")
            if takes_checkpoint and source.what != "checkpoint":
                raise ConfigError(f"{source.origin}: {key} takes a checkpoint, {source} is none")
            one = giver.members is None or source.same_member
            if stage.run == "combine" and key == "ckpts" and one and "base" not in stage.takes:
                raise ConfigError(f"{source.origin}: {stage.name} combines members, which {giver.name} has none of")
    for loop in stages.loops:
        if loop.until is None:
            continue
        source = loop.until[0]
        giver_loop, giver = _giver(stages, source, f"until of {loop.name}")
        if giver_loop is not loop:
            raise ConfigError(f"{source.origin}: until of {loop.name} must look at one of its own stages: {source}")
        if source.what in FILE_KINDS or giver.members is not None:
            raise ConfigError(f"{source.origin}: until of {loop.name} needs one number, which {source} is not")


def _giver(stages: Stages, source: Source, taker: str) -> tuple[Loop, Stage]:
    if source.stage not in stages.givers:
        near = get_close_matches(source.stage, stages.givers, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(stages.givers)}"
        raise ConfigError(f"{source.origin}: {taker} takes {source}, but there is no stage {source.stage!r}; {advice}")
    loop, giver = stages.givers[source.stage]
    if source.what not in giver.gives:
        given = ", ".join(giver.gives) or "nothing"
        raise ConfigError(
            f"{source.origin}: {taker} takes {source}, but {giver.name} gives {given}: add it to its gives"
        )
    return loop, giver


def _takes_from(stages: Stages, stage: Stage, name: str) -> bool:
    """Whether a stage takes, directly or through others, from the one named."""
    seen: set[str] = set()
    waiting = [stage.name]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in stages.givers:
            continue
        seen.add(current)
        sources = [source.stage for source in stages.givers[current][1].takes.values() if not source.before]
        if name in sources:
            return True
        waiting += sources
    return False
