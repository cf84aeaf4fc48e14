"""When two runs are the same run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def assert_same_run() -> Callable[..., None]:
    """Compares two run folders: every checkpoint in every bit, and the log byte for byte.

    A checkpoint in another step than the whole run's (``other_saves``) has the log written up to there, so that two
    lines of neighbouring steps may change places.

    A checkpoint has the weights (``current_model_state``), their average (``state_dict``), optimizers, schedules,
    callbacks, the loader, the loops and the random generators.
    """

    def assert_same(one: Path, other: Path, *, other_saves: bool = False) -> None:
        names = sorted(path.name for path in one.glob("checkpoints/*"))
        assert names == sorted(path.name for path in other.glob("checkpoints/*"))
        assert "last.ckpt" in names
        for name in names:
            _assert_equal(*(_load(run / "checkpoints" / name, run) for run in (one, other)), where=name)
        lines = [(run / "metrics.csv").read_text().splitlines() for run in (one, other)]
        assert lines[0] == lines[1] or (other_saves and sorted(lines[0]) == sorted(lines[1]))

    return assert_same


def _load(path: Path, run: Path) -> Any:
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["callbacks"].values():
        state.pop("current_score", None)  # ModelCheckpoint saves it, but never reads it
    return _without_folder(checkpoint, str(run.resolve()))


def _without_folder(value: Any, folder: str) -> Any:
    """Callbacks note where they saved."""
    if isinstance(value, dict):
        return {_without_folder(key, folder): _without_folder(item, folder) for key, item in value.items()}
    return value.replace(folder, "") if isinstance(value, str) else value


def _assert_equal(one: Any, other: Any, *, where: str) -> None:
    assert type(one) is type(other), f"{where}: {one!r} and {other!r}"
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_equal(one[key], other[key], where=f"{where}: {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            _assert_equal(*pair, where=f"{where}: {number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    else:
        assert one == other, f"{where}: {one!r} and {other!r}"
