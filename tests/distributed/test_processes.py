"""The helper itself: what it returns, and that it never hangs."""

import os
import time

import pytest
import torch
import torch.distributed as dist


def everything(start: int) -> dict:
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    return {"rank": int(os.environ["RANK"]), "world_size": dist.get_world_size(), "total": int(total)}


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise KeyError("from rank 1")
    dist.barrier()


def sleep_on_rank_0() -> None:
    if dist.get_rank() == 0:
        time.sleep(600)


def test_results_come_by_rank(run_processes):
    results = run_processes(everything, 2, 10)
    assert results == [{"rank": rank, "world_size": 2, "total": 21} for rank in (0, 1)]


def test_an_error_is_raised_here_though_others_wait(run_processes):
    with pytest.raises(RuntimeError, match="process 1 of 2(.|\n)*from rank 1"):
        run_processes(fail_on_rank_1, 2)


def test_processes_that_hang_are_killed(run_processes):
    with pytest.raises(TimeoutError, match="of 2 processes still ran after 2 s"):
        run_processes(sleep_on_rank_0, 2, timeout=2.0)
