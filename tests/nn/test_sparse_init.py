import pytest
import torch

from leyden.nn import sparse_init_


@pytest.mark.parametrize(("shape", "zeros"), [((7, 10), 9), ((5, 11), 10), ((6, 2, 3, 3), 17)])  # ceil(0.9 * fan_in)
def test_zeros_of_each_row_and_range_of_the_rest(shape, zeros):
    weight = torch.full(shape, torch.nan)
    assert sparse_init_(weight, 0.9, generator=torch.Generator().manual_seed(0)) is weight
    rows = weight.flatten(1)
    assert (rows == 0.0).sum(1).tolist() == [zeros] * len(rows)
    assert rows.abs().max() <= rows.shape[1] ** -0.5


def test_numbers_are_uniform_and_places_are_drawn_anew_in_each_row():
    weight = sparse_init_(torch.empty(2000, 20), 0.5, generator=torch.Generator().manual_seed(0))
    kept = weight[weight != 0.0] * 20**0.5
    assert kept.mean().abs() < 0.02
    assert kept.square().mean().item() == pytest.approx(1.0 / 3.0, abs=0.01)
    assert ((weight == 0.0).float().mean(0) - 0.5).abs().max() < 0.06  # no column is preferred


def test_generator_and_extremes():
    one, two = (sparse_init_(torch.empty(4, 9), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not sparse_init_(torch.empty(4, 9), 1.0).any()
    assert sparse_init_(torch.empty(4, 9), 0.0).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"tensor must have the shape \[out, in, \.\.\.\], got \(3,\)"):
        sparse_init_(torch.zeros(3))
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.5"):
        sparse_init_(torch.zeros(3, 3), 1.5)
