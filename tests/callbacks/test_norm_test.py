import sys

import pytest
import torch

from leyden.callbacks import inner_product_test, norm_test, pool_shards

N = torch.arange(1.0, 13.0, dtype=torch.float64)
ONE, TWO = N.sin().view(4, 3), N[:8].cos().view(4, 2, 1)
GENERATOR = torch.Generator().manual_seed(0)
GRADS = [torch.randn(6, *shape, generator=GENERATOR, dtype=torch.float64) + 0.5 for shape in ((3, 2), (4,), ())]


# timlautk/AdAdaGrad at cc126fb: `norm_test`, `inner_product_test` and `inner_product_orthogonality_test` of tests.py
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (norm_test([ONE, TWO], eta=0.25), (1572, 3.2076964378, 0.0326506476)),
        (inner_product_test([ONE], theta=0.3), (62, 0.000270616525, 0.00698298775)),
        (inner_product_test([ONE], theta=0.3, nu=0.2), (7334, 0.000270616525, 0.00698298775)),
    ],
)
def test_values_of_the_original_code(found, expected):
    assert found.batch_size == expected[0]
    assert found[1:] == pytest.approx(expected[1:], rel=1e-5)


def test_inner_products_are_those_of_the_whole_model():
    flat = torch.cat([ONE, TWO.flatten(1)], 1)
    assert inner_product_test([ONE, TWO], nu=0.5) == inner_product_test([flat], nu=0.5)
    products = [sum(g * m for g, m in zip(row, flat.mean(0).tolist(), strict=True)) for row in flat.tolist()]
    mean = sum(products) / 4
    by_hand = sum((s - mean) ** 2 for s in products) / 3
    assert inner_product_test([ONE, TWO]).variance == pytest.approx(by_hand)


def test_every_coordinate_passes_by_itself():
    grads = [torch.tensor([[1.0, 3.0], [3.0, 3.0]]), torch.tensor([4.0, 8.0])]  # m 2, 3, 6; v 2, 0, 8
    assert norm_test(grads, eta=0.5, coordinatewise=True) == (2, 10.0, 49.0)  # 4 * max(2/4, 8/36)
    assert norm_test(grads, eta=0.1, coordinatewise=True).batch_size == 50
    assert norm_test(grads, eta=0.1) == (21, 10.0, 49.0)  # 100 * 10/49 = 20.4
    assert norm_test([torch.tensor([[-1.0], [1.0]])], coordinatewise=True).batch_size == sys.maxsize


@pytest.mark.parametrize("test", [norm_test, lambda grads: inner_product_test(grads, nu=0.1)])
def test_equal_gradients_need_no_growth(test):
    assert test([torch.full((4, 3), 2.0), torch.ones(4)])[:2] == (4, 0.0)


@pytest.mark.parametrize("coordinatewise", [False, True])
def test_scale_and_strictness(coordinatewise):
    def needed(grads, eta):
        return norm_test(grads, eta=eta, coordinatewise=coordinatewise).batch_size

    assert needed([1e3 * g for g in GRADS], 0.01) == needed(GRADS, 0.01)
    assert needed(GRADS, 1e-4) == pytest.approx(4 * needed(GRADS, 2e-4), rel=1e-5)


@pytest.mark.parametrize("test", [norm_test, inner_product_test])
def test_gradients_that_cancel_or_are_not_finite(test):
    assert norm_test([torch.tensor([[1.0], [-1.0]])]).batch_size == sys.maxsize
    assert test([torch.zeros(3, 2)]) == (3, 0.0, 0.0)
    assert test([torch.full((3, 2), torch.nan)]).batch_size == 3


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 1, 3]])
def test_shards_are_as_one(sizes):
    grads = GRADS[0]
    shards = grads.split(sizes)
    means = torch.stack([shard.mean(0) for shard in shards])
    variances = torch.stack([shard.var(0) if len(shard) > 1 else torch.zeros(3, 2) for shard in shards])
    mean, variance = pool_shards(means, variances, torch.tensor(sizes))
    torch.testing.assert_close(mean, grads.mean(0))
    torch.testing.assert_close(variance, grads.var(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm_test(GRADS, eta=0.0), "eta must be positive, got 0.0"),
        (lambda: inner_product_test(GRADS, theta=-1.0), "theta must be positive, got -1.0"),
        (lambda: inner_product_test(GRADS, nu=0.0), "nu must be positive, got 0.0"),
        (lambda: norm_test([]), r"same two or more samples, got \[\] rows"),
        (lambda: norm_test([torch.zeros(1, 3)]), r"same two or more samples, got \[1\] rows"),
        (lambda: norm_test([torch.zeros(2, 3), torch.zeros(3)]), r"same two or more samples, got \[2, 3\] rows"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
