"""``leyden new``: a part of your own with its test and its experiment, all of which work at once.

The texts are in ``skeletons/``; ``NewName`` and ``new_name`` stand for the name.
"""

import keyword
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import leyden
from leyden.cli.commands import in_one_line
from leyden.cli.config import ConfigError

__all__ = ["new"]

SKELETONS = Path(__file__).parent / "skeletons"
ROOMS = {  # and the family of the experiment
    "regularizer": ("callbacks", "regularization"),
    "loss": ("losses", "supervised"),
    "optimizer": ("optim", "optimization"),
    "schedule": ("optim", "optimization"),
    "callback": ("callbacks", "supervised"),
    "layer": ("nn", "supervised"),
    "sampler": ("data", "supervised"),
    "datamodule": ("data", "supervised"),
    "method": ("methods", "supervised"),
}
RECORD = """\
title: TITLE
authors: AUTHORS
year: YEAR
arxiv: "NUMBER"
family: {family}
changes: WHAT IT CHANGES, in one line
parts: [{parts}]
comparisons:
  - experiment: {family}/{slug}
    baseline: {baseline}
    metric: test/accuracy
    mode: max
    evidence: {slug}
tests: [{test}]
"""


def new(argv: Sequence[str]) -> int:
    """Writes a part.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden new",
        description="Writes a part into its room, with a test, an experiment and the line that makes it public. It "
        "works: change it step by step.",
    )
    parser.add_argument("kind", choices=ROOMS, help="what it is")
    parser.add_argument("name", help="in words joined by _, or by capitals: my_penalty, MyPenalty")
    parser.add_argument("--family", help="folder of the experiment in configs/experiment/ (default: by the kind)")
    arguments = parser.parse_args(list(argv))
    return in_one_line(lambda: _new(arguments))


def _new(arguments: Namespace) -> int:
    room, family = ROOMS[arguments.kind]
    family = arguments.family or family
    slug, class_name = _names(arguments.name)
    if arguments.kind == "loss":  # which the skeleton adds
        slug, class_name = slug.removesuffix("_loss"), class_name.removesuffix("Loss")
    package = Path(leyden.__file__).parent
    root = package.parents[1]
    if not (root / "tests").is_dir() or not (root / "configs").is_dir():
        raise ConfigError(f"{root} is no checkout: it has no tests and configs; clone the repository to make it yours")
    sections = _sections(arguments.kind, slug, class_name)
    part, test, experiment = (
        package / room / f"{slug}.py",
        root / "tests" / room / f"test_{slug}.py",
        root / "configs" / "experiment" / family / f"{slug}.yaml",
    )
    for path in (part, test, experiment):
        if path.exists():
            raise ConfigError(f"{path.relative_to(root)} is there already: choose another name")
    public = re.findall(r"\w+", re.search(r"^__all__ = \[(.*)\]$", sections["part"], re.M)[1])  # type: ignore[index]
    _check_free(package, public)
    stub = package / room / "__init__.pyi"
    exports = [f"from .{slug} import {name} as {name}" for name in public]
    lines = sorted([*stub.read_text().splitlines(), *exports], key=_stub_order)
    contents = {
        part: sections["part"],
        test: sections["test"],
        experiment: sections["experiment"],
        stub: "\n".join(lines) + "\n",
    }
    _write(contents)
    for path in contents:
        print(path.relative_to(root))
    baseline = re.search(r"Baseline: experiment/(\S+)\.yaml", sections["experiment"])
    print(f"\nNow:\n  scripts/test -k '{slug} or {class_name}'")
    if baseline is None:
        print(f"  leyden fit -c {family}/{slug}")
        return 0
    print(f"  leyden compare {baseline[1]} {family}/{slug} --seeds 5 --record {slug}\n")
    print(
        f"Once that is recorded, the paper's place in the catalog is src/{package.name}/catalog/papers/{slug}.yaml:\n"
    )
    paths = ", ".join(f"{package.name}.{room}.{name}" for name in public)
    test_path = test.relative_to(root).as_posix()
    print(RECORD.format(family=family, parts=paths, slug=slug, baseline=baseline[1], test=test_path), end="")
    return 0


def _names(name: str) -> tuple[str, str]:
    """File name and class name."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name.endswith("_"):
        raise ConfigError(f"the name must be letters, digits and _, beginning with a letter, got {name!r}")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).split("_")
    slug = "_".join(word.lower() for word in words if word)
    if keyword.iskeyword(slug):
        raise ConfigError(f"{slug!r} is a word of Python: choose another name")
    return slug, "".join(word[0].upper() + word[1:] for word in words if word)


def _sections(kind: str, slug: str, class_name: str) -> dict[str, str]:
    text = (SKELETONS / f"{kind}.txt").read_text()
    pieces = re.split(r"^--- (\w+)\n", text.replace("NewName", class_name).replace("new_name", slug), flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _check_free(package: Path, public: list[str]) -> None:
    """A name means one thing in all rooms."""
    for stub in sorted(package.glob("*/__init__.pyi")):
        for name in public:
            if re.search(rf" as {name}$", stub.read_text(), re.M):
                raise ConfigError(f"there is {package.name}.{stub.parent.name}.{name} already: choose another name")


def _stub_order(line: str) -> tuple[str, int, str]:
    """As ruff has it: in a module what is written as a constant, then classes, then functions."""
    _, module, _, name, *_ = line.split(" ")
    return module, 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def _write(contents: dict[Path, str]) -> None:
    """Writes all files, or leaves everything as it was."""
    before = {path: path.read_text() for path in contents if path.exists()}
    try:
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except BaseException:
        for path in contents:
            if path in before:
                path.write_text(before[path])
            else:
                path.unlink(missing_ok=True)
        raise
