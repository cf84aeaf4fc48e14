import math

import pytest
import torch
from scipy import stats

from leyden.nn import NestedDropout, nested_dropout_distribution, truncate_features


def test_distribution_by_hand():
    # exp(-(k / 2)^2) for k = 1, 2, 3; no factor 2 in the exponent
    found = nested_dropout_distribution(3, sigma=2.0)
    weights = [math.exp(-0.25), math.exp(-1.0), math.exp(-2.25)]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-12)


def test_distribution_of_the_authors_code():
    # github.com/yingyichen-cyy/Nested-Co-teaching at 9a2fc40, GaussianDist(mu=0.0, std=10.0, N=512) of nested/
    # train_resnet.py: entries 0, 1, 9 and 30
    authors = [0.11839487627274449, 0.11489577887391314, 0.04399277635939091, 8.01873537694395e-06]
    found = nested_dropout_distribution(512, sigma=10.0)[[0, 1, 9, 30]].tolist()
    assert found == pytest.approx(authors, rel=1e-12)


def test_limits_of_the_width():
    assert nested_dropout_distribution(4, sigma=1e-3, mu=1.0).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert nested_dropout_distribution(4, sigma=1e9).tolist() == pytest.approx([0.25] * 4)
    assert nested_dropout_distribution(600, sigma=0.5, mu=0.0)[0] == pytest.approx(1.0, abs=1e-5)  # no underflow


@pytest.mark.parametrize("keep", [2, torch.tensor(2)])
def test_truncation(keep):
    x = torch.arange(1.0, 9.0).view(2, 4).requires_grad_()
    kept = truncate_features(x, keep)
    assert kept.tolist() == [[1.0, 2.0, 0.0, 0.0], [5.0, 6.0, 0.0, 0.0]]
    kept.sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2
    assert truncate_features(x.detach()[0].bfloat16(), keep).dtype == torch.bfloat16


def kept(layer, times):
    """How many features are kept in each forward pass."""
    return [int(layer(torch.ones(2, len(layer.prob)))[1].sum()) for _ in range(times)]


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    layer = NestedDropout(6, sigma=3.0, mu=1.0)
    counts = torch.tensor(kept(layer, 2000)).bincount(minlength=7)[1:]
    expected = 2000 * nested_dropout_distribution(6, sigma=3.0, mu=1.0)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


def test_extremes_are_drawn():
    assert set(kept(NestedDropout(5, sigma=1e-3, mu=1.0), 20)) == {1}
    assert set(kept(NestedDropout(3, sigma=1e9), 100)) == {1, 2, 3}
    assert set(kept(NestedDropout(1, sigma=1.0), 3)) == {1}


def test_all_samples_and_places_have_the_same_draw():
    layer = NestedDropout(8, sigma=8.0)
    assert len(layer(torch.ones(3, 5, 8)).sum(-1).unique()) == 1


def test_evaluation_draws_nothing():
    layer = NestedDropout(4, sigma=1.0).eval()
    x, before = torch.randn(2, 4), layer.key.clone()
    assert layer(x) is x
    assert torch.equal(layer.key, before)
    assert torch.equal(NestedDropout(4, sigma=1.0, keep=3).eval()(x), x * torch.tensor([1, 1, 1, 0]))


def test_draws_are_saved_and_differ_between_layers():
    torch.manual_seed(0)
    layer, other = NestedDropout(50, sigma=50.0), NestedDropout(50, sigma=50.0)
    kept(layer, 3)
    other.load_state_dict(layer.state_dict())
    assert kept(other, 10) == kept(layer, 10)
    assert kept(NestedDropout(50, sigma=50.0), 10) != kept(layer, 10)
    narrow = NestedDropout(50, sigma=0.1, mu=1.0)
    narrow.load_state_dict(layer.state_dict())
    assert kept(narrow, 5) == [1] * 5  # the width is an argument, not state


def test_half_precision_hardly_changes_the_draws():
    torch.manual_seed(0)
    layer = NestedDropout(20, sigma=20.0)
    half = NestedDropout(20, sigma=20.0)
    half.load_state_dict(layer.state_dict())
    same = [a == b for a, b in zip(kept(layer, 200), kept(half.bfloat16(), 200), strict=True)]
    assert sum(same) > 190


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0, "sigma": 1.0}, "num_features must be at least 1, got 0"),
        ({"num_features": 4, "sigma": 0.0}, "sigma must be positive, got 0"),
        ({"num_features": 4, "sigma": 1.0, "keep": 5}, r"keep must lie in 1..4 .the features., got 5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NestedDropout(**arguments)
