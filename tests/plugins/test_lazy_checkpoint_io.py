import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from leyden.plugins import AtomicCheckpointIO, LazyAsyncCheckpointIO


@pytest.fixture
def io():
    io = LazyAsyncCheckpointIO()
    yield io
    io.teardown()


@pytest.fixture
def held(monkeypatch):
    """Writes wait until this is set."""
    event, save = threading.Event(), torch.save

    def save_when_allowed(*args):
        assert event.wait(30)
        save(*args)

    monkeypatch.setattr(torch, "save", save_when_allowed)
    yield event
    event.set()


@pytest.fixture
def full_disk(monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    def fill():
        monkeypatch.setattr(torch, "save", fail)

    return fill


def state(value: float) -> dict:
    return {"state_dict": {"weight": torch.full((1000,), value)}, "value": value}


def value_of(path) -> float:
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert (loaded["state_dict"]["weight"] == loaded["value"]).all()
    return loaded["value"]


def test_file_equals_the_synchronous_one(io, tmp_path):
    torch.manual_seed(0)
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    base = torch.randn(6, 4)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    checkpoint = {
        "dtypes": [torch.randn(5).mul(10).to(dtype) for dtype in dtypes],
        "complex": torch.randn(3, dtype=torch.complex64),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
        "views": (base, base[1:3], base.T, base[:, 1]),
        "twice": [base, base],
        "parameter": nn.Parameter(torch.randn(2), requires_grad=False),
        "state_dict": module.state_dict(),
        "plain": OrderedDict([("a", None), ("b", (1, "x", 2.5))]),
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "sync.ckpt")
    io.copy_later(module.parameters())
    io.save_checkpoint(checkpoint, tmp_path / "lazy.ckpt")
    lazy, sync = (io.load_checkpoint(tmp_path / name) for name in ("lazy.ckpt", "sync.ckpt"))
    flat, spec = torch.utils._pytree.tree_flatten(lazy)
    expected, expected_spec = torch.utils._pytree.tree_flatten(sync)
    assert spec == expected_spec
    for one, other in zip(flat, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert (one.dtype, one.layout, one.requires_grad) == (other.dtype, other.layout, other.requires_grad)
            assert torch.equal(one.to_dense(), other.to_dense()) if one.is_sparse else torch.equal(one, other)
            if not one.is_sparse:
                assert one.stride() == other.stride()
        else:
            assert one == other
    whole, rows, transposed, _ = lazy["views"]
    assert whole.data_ptr() == transposed.data_ptr() == rows.data_ptr() - 4 * rows.element_size()
    assert lazy["twice"][0].data_ptr() == whole.data_ptr()
    assert (tmp_path / "lazy.ckpt").stat().st_size == pytest.approx((tmp_path / "sync.ckpt").stat().st_size, rel=0.05)


def test_what_changes_after_saving_is_not_seen(io, held, tmp_path):
    checkpoint = state(1.0) | {"list": [1]}
    io.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    checkpoint["state_dict"]["weight"].fill_(2.0)
    checkpoint["list"].append(2)
    held.set()
    assert io.load_checkpoint(tmp_path / "last.ckpt")["list"] == [1]
    assert value_of(tmp_path / "last.ckpt") == 1.0


def test_what_was_promised_not_to_change_is_copied_before_the_snapshot_ends(io, held, tmp_path):
    checkpoint = state(1.0)
    for value in (1.0, 2.0):  # the second uses the memory of the first
        io.copy_later([checkpoint["state_dict"]["weight"]])
        io.save_checkpoint(checkpoint | {"value": value}, tmp_path / "last.ckpt")
        io.wait_for_snapshot()
        checkpoint["state_dict"]["weight"].fill_(value + 1.0)
        held.set()
        io.wait()
        assert value_of(tmp_path / "last.ckpt") == value


def test_a_broken_promise_drops_the_checkpoint(io, tmp_path):
    io.save_checkpoint(state(1.0), tmp_path / "last.ckpt")
    checkpoint = state(2.0)
    io.copy_later([checkpoint["state_dict"]["weight"]])
    io.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    checkpoint["state_dict"]["weight"].fill_(3.0)
    with pytest.raises(RuntimeError, match="were changed between a checkpoint and the optimizer step after it"):
        io.wait_for_snapshot()
    io.wait()
    assert value_of(tmp_path / "last.ckpt") == 1.0


@pytest.mark.parametrize("call", ["wait_for_snapshot", "wait", "save", "load", "teardown"])
def test_an_error_in_the_background_comes_with_the_next_call(io, full_disk, tmp_path, call):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(state(1.0), path)
    io.wait()
    full_disk()
    io.save_checkpoint(state(2.0), path)
    while not next(iter(io._pending)).done():
        pass
    calls = {"save": lambda: io.save_checkpoint(state(3.0), path), "load": lambda: io.load_checkpoint(path)}
    with pytest.raises(OSError, match=r"last\.ckpt could not be written: No space left on device; the file before"):
        calls.get(call, getattr(io, call, None))()
    io.wait()  # reported once
    assert value_of(path) == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("max_pending", [1, 2])
def test_more_than_may_be_on_their_way_wait(held, tmp_path, max_pending):
    io = LazyAsyncCheckpointIO(max_pending=max_pending)
    for number in range(max_pending):
        io.save_checkpoint(state(float(number)), tmp_path / f"{number}.ckpt")
    with ThreadPoolExecutor(1) as other:
        further = other.submit(io.save_checkpoint, state(9.0), tmp_path / "9.ckpt")
        with pytest.raises(TimeoutError):
            further.result(timeout=0.2)
        assert not list(tmp_path.glob("[!.]*"))
        held.set()
        further.result(timeout=30)
    io.teardown()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.ckpt" for n in (*range(max_pending), 9)]
    assert value_of(tmp_path / "9.ckpt") == 9.0


def test_an_old_checkpoint_is_removed_after_the_new_one_has_appeared(io, held, full_disk, tmp_path):
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    held.set()
    io.save_checkpoint(state(1.0), old)
    io.wait()
    held.clear()
    io.save_checkpoint(state(2.0), new)
    io.remove_checkpoint(old)
    assert old.is_file()
    assert not new.is_file()
    held.set()
    io.wait()
    assert not old.exists()
    assert value_of(new) == 2.0
    full_disk()
    io.save_checkpoint(state(3.0), tmp_path / "newest.ckpt")
    io.remove_checkpoint(new)
    with pytest.raises(OSError, match="No space left"):
        io.wait()
    assert value_of(new) == 2.0


def test_teardown_ends_the_threads_and_the_plugin_can_be_used_again(tmp_path):
    io = LazyAsyncCheckpointIO()
    for value in (1.0, 2.0):
        io.save_checkpoint(state(value), tmp_path / "last.ckpt")
        io.teardown()
        assert not [thread for thread in threading.enumerate() if "checkpoint" in thread.name]
        assert value_of(tmp_path / "last.ckpt") == value
    io.remove_checkpoint(tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(io, tmp_path):
    with pytest.raises(ValueError, match="pinned_bytes must be at least 0, or None for no limit, got -1"):
        LazyAsyncCheckpointIO(pinned_bytes=-1)
    with pytest.raises(ValueError, match="max_pending must be at least 1, got 0"):
        LazyAsyncCheckpointIO(max_pending=0)
    with pytest.raises(TypeError, match="storage_options must be None"):
        io.save_checkpoint({}, tmp_path / "last.ckpt", storage_options={"a": 1})
