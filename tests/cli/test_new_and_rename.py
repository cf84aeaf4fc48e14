"""A clone that was renamed, and in it a part of every kind: `leyden rename` and `leyden new` as they are used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import leyden
from leyden.cli import main
from leyden.cli.new import ROOMS
from leyden.cli.rename import renamed_text

ROOT = Path(leyden.__file__).parents[2]
# which speak of the jar, or keep a name on purpose
KEPT = {"LICENSE", "README.md", "docs/index.md", "tests/cli/test_new_and_rename.py"}
KEPT |= {"src/my_lab/cli/compared_arms.py", "src/my_lab/cli/rename.py"}


def run(folder, *command, code=0):
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(folder, *arguments):
    names = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    return run(folder, "git", *names, *arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A copy of this repository that is called ``my_lab``, with a new part of every kind."""
    folder = tmp_path_factory.mktemp("template")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Copy")
    assert "leyden is my_lab now" in run(folder, sys.executable, "-m", "leyden.cli", "rename", "my_lab")
    code = "import sys; from my_lab.cli import main; "
    code += f"sys.exit(max(main(['new', kind, 'my_' + kind + '_one']) for kind in {list(ROOMS)}))"
    run(folder, sys.executable, "-c", code)
    return folder


def new_files(template, ending):
    return sorted(path.relative_to(template).as_posix() for path in template.rglob(f"*my_*{ending}"))


def test_the_old_name_is_gone(template):
    assert not (template / "src" / "leyden").exists()
    left = set()
    for path in template.rglob("*"):
        if path.is_file() and ".git" not in path.parts and b"leyden" in path.read_bytes().lower():
            left.add(path.relative_to(template).as_posix())
    assert left <= KEPT
    project = (template / "pyproject.toml").read_text()
    assert 'name = "my_lab"' in project
    assert 'my_lab = "my_lab.cli:main"' in project
    assert 'root_packages = ["my_lab"]' in project
    assert (template / "scripts" / "test").stat().st_mode & 0o111


def test_new_parts_are_clean(template):
    files = [file for file in new_files(template, ".py") if not file.startswith("src/my_lab/cli/skeletons")]
    assert len(files) == 2 * len(ROOMS)
    run(template, sys.executable, "-m", "ruff", "check", *files)
    run(template, sys.executable, "-m", "ruff", "format", "--check", *files)
    sources = [file for file in files if file.startswith("src/")]
    # what they import is checked elsewhere, and takes a minute
    run(template, sys.executable, "-m", "mypy", "--follow-imports=skip", f"--cache-dir={os.devnull}", *sources)


def test_new_parts_are_green_and_the_renamed_rest_too(template):
    tests = [file for file in new_files(template, ".py") if file.startswith("tests/")]
    tests += ["tests/contract/test_rooms.py", "tests/smoke/test_experiments.py", "tests/cli/test_catalog.py"]
    chosen = "my_ or My or exports or test_show or test_papers"
    printed = run(
        template, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "-k", chosen, *tests
    )
    passed = int(re.search(r"(\d+) passed", printed)[1])
    assert passed >= 2 * len(ROOMS) + len(ROOMS)  # of each part two tests, and its experiment
    assert "skipped" not in printed


def test_evidence_holds_under_the_new_name(template):
    assert "recorded before" not in run(template, sys.executable, "-m", "my_lab.cli", "show", "ema")


# ---- mistakes, in a small clone


@pytest.fixture
def clone(tmp_path, monkeypatch):
    for name, text in {
        "src/leyden/__init__.py": "import leyden  # Leyden, LEYDEN_X\n",
        "src/leyden/callbacks/__init__.pyi": "from .a import A as A\nfrom .c import C as C\n",
        "src/leyden/losses/__init__.pyi": "from .a import a_loss as a_loss\n",
        "pyproject.toml": 'name = "leyden"\n',
        "LICENSE": "The Leyden authors\n",
        "tests/x": "",
        "configs/x": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\xffleyden")
    (tmp_path / "pyproject.toml").chmod(0o755)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "Begin")
    monkeypatch.setattr(leyden, "__file__", str(tmp_path / "src/leyden/__init__.py"))
    return tmp_path


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def error(capsys, *arguments):
    assert main(list(arguments)) == 1
    return capsys.readouterr().err.removeprefix("leyden: error: ")


def test_renamed_text():
    assert renamed_text("LeydenCLI, leyden.cli, LEYDEN_DIR", "leyden", "my_lab") == "MyLabCLI, my_lab.cli, MY_LAB_DIR"
    jar = "A Leyden jar stores lightning; Leyden"
    assert renamed_text(jar, "leyden", "my_lab") == "A Leyden jar stores lightning; MyLab"
    assert renamed_text("my_lab MyLab MY_LAB", "my_lab", "ours") == "ours Ours OURS"


def test_rename(clone):
    assert main(["rename", "ours"]) == 0
    files = contents(clone)
    assert files["src/ours/__init__.py"] == b"import ours  # Ours, OURS_X\n"
    assert files["picture.png"] == b"\xffleyden"
    assert files["LICENSE"] == b"The Leyden authors\n"
    assert not (clone / "src/leyden").exists()
    assert (clone / "pyproject.toml").stat().st_mode & 0o777 == 0o755


def test_rename_refuses(clone, capsys):
    for name in ("My-Lab", "class", "_x", "a__b"):
        assert "must be small letters" in error(capsys, "rename", name) or name == "class"
    assert "there is a package json already" in error(capsys, "rename", "json")
    assert "there is a package torch already" in error(capsys, "rename", "torch")
    assert "the name is leyden already" in error(capsys, "rename", "leyden")
    (clone / "new.py").write_text("leyden")
    before = contents(clone)
    assert "has changes that are not committed: commit them, or say --force" in error(capsys, "rename", "ours")
    (clone / "src" / "ours").mkdir()
    (clone / "src" / "ours" / "__init__.py").write_text("in the way")
    assert "is in the way" in error(capsys, "rename", "ours", "--force")
    shutil.rmtree(clone / "src" / "ours")
    assert contents(clone) == before
    assert main(["rename", "ours", "--force"]) == 0
    assert (clone / "new.py").read_text().strip() == "ours"


@pytest.mark.parametrize("last", range(1, 8))
def test_an_error_leaves_the_clone_as_it_was(clone, capsys, monkeypatch, last):
    before = contents(clone)
    written = []

    def write(path, content, original=Path.write_bytes):
        written.append(path)
        if len(written) == last:
            raise OSError("the disk is full")
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    assert "the disk is full" in error(capsys, "rename", "ours")
    assert contents(clone) == before
    assert not (clone / "src" / "ours").exists()
    assert git(clone, "status", "--porcelain") == ""


def test_new_refuses(clone, capsys):
    before = contents(clone)
    assert "there is leyden.callbacks.C already" in error(capsys, "new", "callback", "c")
    assert "there is leyden.losses.a_loss already" in error(capsys, "new", "loss", "a")
    assert "the name must be letters, digits and _" in error(capsys, "new", "callback", "my-callback")
    assert "'class' is a word of Python" in error(capsys, "new", "callback", "Class")
    assert contents(clone) == before
    assert main(["new", "callback", "HTTPPenalty"]) == 0
    assert "src/leyden/callbacks/http_penalty.py" in capsys.readouterr().out
    stub = (clone / "src/leyden/callbacks/__init__.pyi").read_text().splitlines()
    assert stub[2] == "from .http_penalty import HTTPPenalty as HTTPPenalty"
    before = contents(clone)
    assert "src/leyden/callbacks/http_penalty.py is there already" in error(capsys, "new", "callback", "http_penalty")
    assert contents(clone) == before


def test_new_of_no_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leyden, "__file__", str(tmp_path / "site-packages/leyden/__init__.py"))
    assert "is no checkout" in error(capsys, "new", "callback", "c")
    assert "is no clone with src/" in error(capsys, "rename", "ours")
