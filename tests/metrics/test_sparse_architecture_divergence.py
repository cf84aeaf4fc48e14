import pytest
import torch

from leyden.metrics import SparseArchitectureDivergence, sparse_architecture_divergence

A, B = torch.tensor([[1, 1, 0, 0]], dtype=torch.bool), torch.tensor([[1, 0, 0, 1]], dtype=torch.bool)


def test_by_hand():
    assert sparse_architecture_divergence(A, B) == 2
    assert sparse_architecture_divergence([A, B, A], [A, A, B]) == 4
    assert sparse_architecture_divergence(A, A) == 0
    assert sparse_architecture_divergence(A, B) == sparse_architecture_divergence(B, A)
    assert sparse_architecture_divergence(A.float(), B.float()) == 2
    assert sparse_architecture_divergence([], []) == 0


def test_metric_adds_up():
    metric = SparseArchitectureDivergence()
    metric.update(A, B)
    metric.update([A, A], [B, A])
    assert metric.compute() == 4
    metric.reset()
    metric.update(A, B)
    assert metric.compute() == 2


def divergence_here():
    metric = SparseArchitectureDivergence()
    metric.update(A, B)
    return metric.compute()


def test_all_processes_have_the_same_masks(run_processes):
    assert [value.item() for value in run_processes(divergence_here, 2)] == [2, 2]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"mask_b must have the shapes of mask_a, \[\(1, 4\)\], got \[\(4,\)\]"):
        sparse_architecture_divergence(A, B[0])
    with pytest.raises(ValueError, match="mask_b must have the shapes"):
        sparse_architecture_divergence([A, A], [A])
