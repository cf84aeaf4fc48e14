import pytest
import torch

from leyden.nn import ExpertAggregator, exclude_expert


def filled():
    """Parameters are cos(0), cos(1), ... in their order; features are sin(0), sin(1), ..."""
    aggregator, number = ExpertAggregator(4, depth=2, heads=2).double().eval(), 0
    with torch.no_grad():
        for p in aggregator.parameters():
            p.copy_(torch.arange(number, number + p.numel(), dtype=torch.float64).cos().view_as(p))
            number += p.numel()
    assert number == 344
    return aggregator, torch.arange(24, dtype=torch.float64).sin().view(2, 3, 4)


def test_numbers_of_the_authors_code():
    aggregator, features = filled()
    # n3il666/Meta-DMoE, src/transformer.py: Transformer(4, 2, 2, 8)(features).mean(1), filled in the same way
    expected = [
        [-4.5040260538031935, -5.728002774565745, 6.774337567268588, 0.23127780946166845],
        [-4.465706114443332, -6.194077011190889, 7.384663808999723, 0.15680181036728472],
    ]
    torch.testing.assert_close(aggregator(features), torch.tensor(expected, dtype=torch.float64))


def test_order_of_the_experts_does_not_count():
    aggregator, features = filled()
    torch.testing.assert_close(aggregator(features[:, [2, 0, 1]]), aggregator(features))


def test_without_one_of_equal_experts():
    aggregator, features = filled()
    equal = features[:, :1].expand(-1, 4, -1)
    torch.testing.assert_close(aggregator(exclude_expert(equal, torch.tensor([3, 1]))), aggregator(equal))


def test_dropout_in_training_only():
    aggregator, features = filled()
    assert torch.equal(aggregator(features), aggregator(features))
    aggregator.train()
    assert not torch.equal(aggregator(features), aggregator(features))


def test_exclusion():
    features = torch.arange(12.0).view(3, 4, 1)
    left = exclude_expert(features, torch.tensor([0, 2, 3]))
    assert left.squeeze(-1).tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 7.0], [8.0, 9.0, 10.0]]
    with pytest.raises(ValueError, match=r"K >= 2, and index \[N\], got \(3, 1, 1\) and \(3,\)"):
        exclude_expert(features[:, :1], torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(3, 4, 1\) and \(2,\)"):
        exclude_expert(features, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dim": 10}, "dim must be a multiple of heads, got 10 and 16"),
        ({"dim": 16, "depth": 0}, "depth must be at least 1, got 0"),
        ({"dim": 16, "mlp_dim": 0}, "mlp_dim must be at least 1, got 0"),
        ({"dim": 16, "dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        ExpertAggregator(**arguments)
