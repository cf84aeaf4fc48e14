"""``leyden rename``: turns the clone into a template of your own, under its own name."""

import keyword
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import leyden
from leyden.cli.commands import in_one_line
from leyden.cli.config import ConfigError

__all__ = ["rename", "renamed_text"]

LEFT_OUT = {"LICENSE"}
KEPT = re.compile("Leyden jar|^.*# keep this name$", re.MULTILINE)  # keep this name


def rename(argv: Sequence[str]) -> int:
    """Renames everything.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden rename",
        description="Renames the package, its command and its project in all files of the clone: source, imports, "
        "configs, tests, docs. An error leaves the clone as it was.",
    )
    parser.add_argument("name", help="small letters, digits and _: mylab")
    parser.add_argument("--force", action="store_true", help="also with changes that are not committed")
    arguments = parser.parse_args(list(argv))
    return in_one_line(lambda: _rename(arguments))


def renamed_text(text: str, old: str, new: str) -> str:
    """Puts a name in the place of another, in the three ways it is written: ``my_lab``, ``MyLab``, ``MY_LAB``."""
    title, new_title = ("".join(word.capitalize() for word in name.split("_")) for name in (old, new))
    words = {old: new, title: new_title, old.upper(): new.upper()}
    pattern = re.compile("|".join([KEPT.pattern, *map(re.escape, words)]), re.MULTILINE)
    return pattern.sub(lambda found: words.get(found[0], found[0]), text)


def _rename(arguments: Namespace) -> int:
    package = Path(leyden.__file__).parent
    root, old, new = package.parents[1], package.name, arguments.name
    _check_name(new, old)
    if package.parent.name != "src" or not (root / "pyproject.toml").is_file():
        raise ConfigError(f"{root} is no clone with src/ and pyproject.toml: clone the repository to make it yours")
    files = _files(root, force=arguments.force)
    before = {path: path.read_bytes() for path in files if path.name not in LEFT_OUT}
    after: dict[Path, bytes] = {}
    for path, content in before.items():
        target = root / renamed_text(path.relative_to(root).as_posix(), old, new)
        after[target] = _renamed(content, old, new)
    if len(after) < len(before):
        raise ConfigError(f"two files would have one name: {root / 'src' / new} is in the way")
    _replace(root, before, after)
    _tidy(root)
    changed = sum(before.get(path) != content for path, content in after.items())
    print(f"leyden: {old} is {new} now, in {changed} files of {root}")
    print(f"Install it anew, which gives you the command {new}: .venv/bin/pip install -e '.[dev]' -c constraints.txt")
    return 0


def _check_name(new: str, old: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", new) or keyword.iskeyword(new):
        raise ConfigError(f"the name must be small letters, digits and single _ between them, got {new!r}")
    if new == old:
        raise ConfigError(f"the name is {old} already")
    if new in sys.stdlib_module_names or find_spec(new) is not None:
        raise ConfigError(f"there is a package {new} already, which the new name would hide")


def _files(root: Path, *, force: bool) -> list[Path]:
    """All files of the clone: those that git knows or would."""
    if not (root / ".git").exists():
        raise ConfigError(
            f"{root} is no git repository: git says which files are its own, and brings the old name back"
        )
    if _git(root, "status", "--porcelain") and not force:
        raise ConfigError(f"{root} has changes that are not committed: commit them, or say --force")
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    paths = [root / name for name in sorted(set(listed)) if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"git {arguments[0]} does not work here: {getattr(error, 'stderr', '') or error}") from error
    return done.stdout


def _renamed(content: bytes, old: str, new: str) -> bytes:
    try:
        return renamed_text(content.decode(), old, new).encode()
    except UnicodeDecodeError:  # a picture
        return content


def _replace(root: Path, before: dict[Path, bytes], after: dict[Path, bytes]) -> None:
    """Writes the new files and removes the old ones; an error brings all back."""
    modes = {path: path.stat().st_mode for path in before}
    try:
        for (path, content), source in zip(after.items(), before, strict=True):
            if path not in before and path.exists():
                raise ConfigError(f"{path} is in the way")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(modes[source])
        for path in before.keys() - after.keys():
            path.unlink()
    except BaseException:
        for path in after.keys() - before.keys():
            if path.is_file() and path.read_bytes() == after[path]:
                path.unlink()
        for path, content in before.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
                path.chmod(modes[path])
        _remove_empty(root, after)
        raise
    _remove_empty(root, before)


def _remove_empty(root: Path, files: dict[Path, bytes]) -> None:
    """Removes folders that are left without files, also those that hold only what Python compiled."""
    folders = {folder for path in files for folder in path.parents if folder.is_relative_to(root) and folder != root}
    for folder in sorted(folders, reverse=True):
        cache = folder / "__pycache__"
        if not folder.is_dir() or any(path != cache for path in folder.iterdir()):
            continue
        for path in cache.iterdir() if cache.is_dir() else ():
            path.unlink()
        if cache.is_dir():
            cache.rmdir()
        folder.rmdir()


def _tidy(root: Path) -> None:
    """Sorts imports and breaks lines anew, where there is ruff: a name of another length fits otherwise."""
    if find_spec("ruff") is None:
        print("leyden: ruff is not installed; run 'ruff check --fix' and 'ruff format' when it is")
        return
    for arguments in (["check", "--select", "I", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=root, check=False, capture_output=True)
