import pytest
import torch

from leyden.analysis import lanczos


def symmetric(size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (matrix + matrix.T).to(dtype), torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_steps_as_dimensions_give_all_eigenvalues(dtype):
    matrix, start = symmetric(12, dtype)
    nodes, weights = lanczos(lambda v: matrix @ v, start, 12)
    values, modes = torch.linalg.eigh(matrix.double())
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(nodes, values, **close)
    torch.testing.assert_close(weights, (modes.T @ start.double()).square() / start.double().square().sum(), **close)
    assert weights.sum().item() == pytest.approx(1.0)


def test_quadrature_is_exact_up_to_its_degree():
    matrix, start = symmetric(12)
    nodes, weights = lanczos(lambda v: matrix @ v, start, 4)
    for degree in range(9):
        expected = start @ torch.linalg.matrix_power(matrix, degree) @ start / (start @ start)
        found = (weights * nodes**degree).sum()
        assert (found.item() == pytest.approx(expected.item())) == (degree <= 7)


def test_outliers_are_found_in_few_steps():
    values = torch.cat([torch.linspace(-1.0, 1.0, 2000), torch.tensor([9.0, -6.0])])
    nodes, _ = lanczos(lambda v: values * v, torch.ones(2002), 12)
    assert nodes[[0, -1]].tolist() == pytest.approx([-6.0, 9.0], abs=1e-3)
    assert len(nodes) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_where_nothing_is_left(dtype):
    values = torch.tensor([5.0, 2.0, 2.0, 2.0], dtype=dtype)
    nodes, weights = lanczos(lambda v: values * v, torch.ones(4, dtype=dtype), 4)
    torch.testing.assert_close(nodes, torch.tensor([2.0, 5.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25], dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert lanczos(torch.zeros_like, torch.ones(4, dtype=dtype), 3)[0].tolist() == [0.0]


@pytest.mark.parametrize(
    ("matvec", "start", "steps", "message"),
    [
        (torch.clone, torch.zeros(3), 2, "start must be a vector other than 0"),
        (torch.clone, torch.ones(3, 1), 2, r"start must be a vector other than 0, got shape \(3, 1\)"),
        (torch.clone, torch.ones(3), 0, "steps must be at least 1, got 0"),
        (lambda v: v * torch.nan, torch.ones(3), 2, "matvec has returned a vector that is not finite"),
    ],
)
def test_bad_arguments(matvec, start, steps, message):
    with pytest.raises(ValueError, match=message):
        lanczos(matvec, start, steps)
