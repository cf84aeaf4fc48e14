"""What the package says of itself: versions, constraints, public names, and which import brings which library in."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import leyden

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "leyden"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = sorted(stub.parent.name for stub in PACKAGE.glob("*/__init__.pyi"))
LIGHT_ROOMS = ("losses", "optim", "weights", "nn")


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version
        assert "+" not in specifier.version  # a local build, such as +cpu, is not to be had everywhere
        versions[canonicalize_name(requirement.name)] = specifier.version
    return versions


def test_version_is_the_same_in_both_places():
    assert leyden.__version__ == PROJECT["version"]


def test_constraints_pin_what_is_installed_directly():
    extras = PROJECT["optional-dependencies"]
    pinned = pinned_versions()
    own = [Requirement(line) for line in extras["dev"] if line.startswith(f"{PROJECT['name']}[")]
    further = [line for requirement in own for extra in sorted(requirement.extras) for line in extras[extra]]
    for line in PROJECT["dependencies"] + extras["text"] + extras["dev"] + further:
        requirement = Requirement(line)
        if requirement in own:
            continue
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_resolve(room):
    module = importlib.import_module(f"leyden.{room}")
    for name in module.__all__:
        getattr(module, name)
    for name in module.__all__:  # again: a file that is called like a name must not have taken its place meanwhile
        assert not isinstance(getattr(module, name), ModuleType), name


def modules_after(code: str) -> set[str]:
    """Runs `code` in a new Python; returns the top-level packages that are imported then."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_package_alone_imports_no_torch():
    assert "torch" not in modules_after("import leyden")


def test_functions_on_tensors_import_no_trainer():
    code = "import importlib\n" + "\n".join(
        f"room = importlib.import_module('leyden.{room}'); [getattr(room, name) for name in room.__all__]"
        for room in LIGHT_ROOMS
    )
    assert modules_after(code).isdisjoint({"lightning", "pytorch_lightning", "torchmetrics"})
