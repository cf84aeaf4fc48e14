import pytest
import torch

from leyden.analysis import essential_sparsity


def test_by_hand():
    grid, scores = [0.0, 0.25, 0.5, 0.75], [0.90, 0.895, 0.88, 0.91]
    assert essential_sparsity(grid, scores, tolerance=0.01) == 0.25  # 0.5 is worse, so 0.75 does not count
    assert essential_sparsity(grid, scores, tolerance=0.02) == 0.75
    assert essential_sparsity(grid, scores, tolerance=0.0) == 0.0
    assert essential_sparsity(torch.tensor(grid), torch.tensor(scores, dtype=torch.float64)) == 0.25
    assert essential_sparsity([0.0], [float("-inf")]) == 0.0
    assert essential_sparsity([0.0, 0.5], [0.9, float("nan")]) == 0.0


def test_more_tolerance_never_lowers_it():
    scores = torch.rand(10, generator=torch.Generator().manual_seed(0))
    grid = torch.arange(10) / 10
    found = [essential_sparsity(grid, scores, tolerance=tolerance).item() for tolerance in (0.0, 0.1, 0.3, 0.5, 1.0)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.9)
    assert essential_sparsity(grid, scores + 3.0, tolerance=0.1) == essential_sparsity(grid, scores, tolerance=0.1)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"scores must be as many as sparsities, got \(2,\) and \(1,\)"):
        essential_sparsity([0.0], [0.5, 0.4])
    for grid in ([0.1, 0.2], [0.0, 0.5, 0.5]):
        with pytest.raises(ValueError, match="sparsities must increase from 0, got"):
            essential_sparsity(grid, [0.0] * len(grid))
    with pytest.raises(ValueError, match="tolerance must be at least 0, got -1"):
        essential_sparsity([0.0], [0.5], tolerance=-1.0)
