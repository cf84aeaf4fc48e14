"""Checkpoints in parts: whole for one process, shards for several, and never half of one."""

import errno
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.utils._pytree import tree_flatten

from leyden.plugins import AtomicCheckpointIO, DamagedCheckpointError, _sharded_checkpoint, read_checkpoint
from leyden.plugins._sharded_checkpoint import write_sharded

WEIGHT = torch.arange(15.0).view(5, 3)  # 5 rows: 3 and 2
BIAS = torch.tensor([7.0])  # 1 row: 1 and 0
MOMENT = torch.arange(5.0).bfloat16()
PLAIN = {"step": torch.tensor(3), "names": ("a", 1, None), "groups": [{"lr": 0.1, "params": [0, 1]}]}


def checkpoint(shift=0.0):
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    weight, bias, moment = (distribute_tensor(t.clone() + shift, mesh, [Shard(0)]) for t in (WEIGHT, BIAS, MOMENT))
    return {
        "state_dict": {"layer/weight": weight, "bias": bias},
        "optimizer_states": [{"state": {0: {"exp_avg": moment}}}],
        **PLAIN,
    }


def whole(shift=0.0):
    return {
        "state_dict": {"layer/weight": WEIGHT + shift, "bias": BIAS + shift},
        "optimizer_states": [{"state": {0: {"exp_avg": MOMENT + shift}}}],
        **PLAIN,
    }


def assert_equal(one, other):
    (leaves, structure), (expected, expected_structure) = tree_flatten(one), tree_flatten(other)
    assert structure == expected_structure
    for leaf, value in zip(leaves, expected, strict=True):
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(leaf, value, rtol=0, atol=0)
        else:
            assert leaf == value


def write(path, *shifts):
    for shift in shifts:
        write_sharded(checkpoint(shift), path)


def read(path):
    """What a process has of a weight, and whether all of its tensors put together are as they were."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    state = read_checkpoint(path, mesh=mesh)
    tensors = {**state["state_dict"], "exp_avg": state["optimizer_states"][0]["state"][0]["exp_avg"]}
    assert all(isinstance(tensor, DTensor) for tensor in tensors.values())
    return state["state_dict"]["layer/weight"].to_local(), {name: t.full_tensor() for name, t in tensors.items()}


def fail_on_the_second(path, error_number):
    write(path, 0.0)
    finish = _sharded_checkpoint._finish

    def fail(folder, rest):
        if torch.distributed.get_rank() == 1:
            raise OSError(error_number, "No space left on device")
        return finish(folder, rest)

    _sharded_checkpoint._finish = fail
    try:
        write(path, 1.0)
    except OSError as error:
        return str(error)


def die_while_saving(path):
    write(path, 0.0)
    _sharded_checkpoint._publish = lambda *args: os._exit(9)  # all parts are written
    write(path, 1.0)


def read_damaged(path):
    try:
        read_checkpoint(path, mesh=init_device_mesh("cpu", (2,)))
    except DamagedCheckpointError as error:
        return str(error)


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_process_reads_what_two_wrote(run_processes, tmp_path):
    run_processes(write, 2, tmp_path / "last.ckpt", 0.0)
    assert_equal(AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt"), whole())


def test_three_processes_read_what_two_wrote(run_processes, tmp_path):
    run_processes(write, 2, tmp_path / "last.ckpt", 0.0)
    results = run_processes(read, 3, tmp_path / "last.ckpt")
    assert_equal([local for local, _ in results], [WEIGHT[:2], WEIGHT[2:4], WEIGHT[4:]])
    for _, tensors in results:
        assert_equal(tensors, {"layer/weight": WEIGHT, "bias": BIAS, "exp_avg": MOMENT})


def test_parts_that_no_checkpoint_needs_are_removed(run_processes, tmp_path):
    (tmp_path / "last-7.shards").mkdir()  # as a kill leaves it
    run_processes(write, 2, tmp_path / "last.ckpt", 0.0, 1.0, 2.0)
    folder = json.loads((tmp_path / "last.ckpt").read_text())["shards"]
    assert [name for name in parts(tmp_path) if not name.startswith(".")] == [folder, "last.ckpt"]
    assert_equal(read_checkpoint(tmp_path / "last.ckpt"), whole(2.0))
    (tmp_path / "previous.ckpt").hardlink_to(tmp_path / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint(PLAIN, tmp_path / "last.ckpt")
    assert_equal(read_checkpoint(tmp_path / "previous.ckpt"), whole(2.0))
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "previous.ckpt")
    assert [name for name in parts(tmp_path) if not name.startswith(".")] == ["last.ckpt"]


def test_a_failure_of_one_process_is_one_of_all(run_processes, tmp_path):
    errors = run_processes(fail_on_the_second, 2, tmp_path / "last.ckpt", errno.ENOSPC)
    for error in errors:
        assert error.endswith("could not be written: No space left on device; the file before it is intact")
    assert len(list(tmp_path.glob("*.shards"))) == 1
    assert_equal(read_checkpoint(tmp_path / "last.ckpt"), whole())


def test_a_kill_leaves_the_checkpoint_before(run_processes, tmp_path):
    with pytest.raises(RuntimeError):
        run_processes(die_while_saving, 2, tmp_path / "last.ckpt")
    assert len(list(tmp_path.glob("*.shards"))) == 2
    assert_equal(read_checkpoint(tmp_path / "last.ckpt"), whole())
    run_processes(write, 2, tmp_path / "last.ckpt", 2.0)
    assert len(list(tmp_path.glob("*.shards"))) == 1
    assert_equal(read_checkpoint(tmp_path / "last.ckpt"), whole(2.0))


@pytest.mark.parametrize("name", ["__1_0.distcp", "rest.pt", ".metadata"])
def test_damage_is_found_by_all(run_processes, tmp_path, name):
    run_processes(write, 2, tmp_path / "last.ckpt", 0.0)
    run_processes(write, 2, tmp_path / "best.ckpt", 1.0)
    part = next(tmp_path.glob("last-*.shards")) / name
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=f"wrong checksum of .*{name}") as caught:
        read_checkpoint(tmp_path / "last.ckpt")
    assert caught.value.intact == [tmp_path / "best.ckpt"]
    for error in run_processes(read_damaged, 2, tmp_path / "last.ckpt"):
        assert f"{name})" in error


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_no_code_is_run_from_a_checkpoint(run_processes, tmp_path, capsys):
    run_processes(write, 2, tmp_path / "last.ckpt", 0.0)
    index = json.loads((tmp_path / "last.ckpt").read_text())
    metadata = pickle.dumps(Evil())
    (tmp_path / index["shards"] / ".metadata").write_bytes(metadata)
    index["crc32"][".metadata"] = zlib.crc32(metadata)
    (tmp_path / "last.ckpt").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="holds a builtins.print, but only tensors and plain values are read"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert capsys.readouterr().out == ""


def test_a_damaged_index_does_not_cost_the_parts_of_others(run_processes, tmp_path):
    run_processes(write, 2, tmp_path / "best.ckpt", 1.0)
    (tmp_path / "last.ckpt").write_text('{"shards": "la')
    AtomicCheckpointIO().save_checkpoint(PLAIN, tmp_path / "more.ckpt")
    assert_equal(read_checkpoint(tmp_path / "best.ckpt"), whole(1.0))


def test_missing_parts_and_other_folders_are_named(run_processes, tmp_path):
    run_processes(write, 2, tmp_path / "last.ckpt", 0.0)
    part = next(tmp_path.glob("*.shards")) / "__0_0.distcp"
    part.unlink()
    with pytest.raises(DamagedCheckpointError, match="__0_0.distcp is missing"):
        read_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_text('{"shards": "la')
    with pytest.raises(DamagedCheckpointError, match="the index cannot be read"):
        read_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_checkpoint(tmp_path)
