import pytest
import torch
from sklearn.metrics import roc_auc_score

from leyden.data import GeneratedClicks


def tensors(part="train", **arguments):
    return GeneratedClicks(**arguments).dataset(part).tensors


def test_chances_by_the_groups():
    data = tensors(num_train=500, num_items=60, num_groups=6, num_interests=2, max_history=5)
    for (candidate, *history), chance in zip(data["input"].tolist(), data["chance"].tolist(), strict=True):
        length = history.index(0) if 0 in history else 5
        assert length >= 1
        assert not any(history[length:])
        groups = {(item - 1) % 6 for item in history[:length]}
        assert len(groups) <= 2
        assert chance == pytest.approx(0.8 if (candidate - 1) % 6 in groups else 0.1)
    assert data["input"].min() == 0
    assert data["input"].max() <= 60


def test_clicks_come_with_their_chances():
    data = tensors()
    for chance in (0.8, 0.1):
        clicks = data["target"][(data["chance"] - chance).abs() < 1e-6].float()
        assert len(clicks) > 5000
        assert clicks.mean().item() == pytest.approx(chance, abs=0.015)


def test_best_auroc_by_the_chances_alone():
    """With a share s of candidates of interest: clicks fall apart into s * 0.8 and (1 - s) * 0.1, others likewise."""
    data = tensors("test")
    s = (data["chance"] > 0.5).double().mean().item()
    hit, miss = 0.8 * s / (0.8 * s + 0.1 * (1 - s)), 0.2 * s / (0.2 * s + 0.9 * (1 - s))
    expected = hit * (1 - miss) + 0.5 * (hit * miss + (1 - hit) * (1 - miss))
    assert roc_auc_score(data["target"], data["chance"]) == pytest.approx(expected, abs=0.01)


def test_popularity_within_a_group():
    items = tensors(num_items=40, num_groups=10)["input"][:, 0]
    share = torch.bincount((items - 1) // 10, minlength=4).double() / len(items)
    harmonic = torch.tensor([12.0, 6.0, 4.0, 3.0], dtype=torch.float64) / 25.0
    torch.testing.assert_close(share, harmonic, rtol=0.0, atol=0.015)


def test_parts_and_seeds():
    data = GeneratedClicks(num_train=100, num_eval=50)
    assert [len(data.dataset(part)) for part in ("train", "val", "test")] == [100, 50, 50]
    val, test = (data.dataset(part).tensors["input"] for part in ("val", "test"))
    assert not torch.equal(val, test)
    assert torch.equal(tensors("val", num_train=7, num_eval=50, seed=3)["input"], val)
    assert not torch.equal(tensors("val", num_eval=50, data_seed=1)["input"], val)
    fewer = tensors(num_train=60)
    assert all(torch.equal(fewer[key], data.dataset("train").tensors[key][:60]) for key in fewer)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"max_history": 0}, "max_history must be at least 1, got 0"),
        ({"num_items": 30}, "num_items must be a multiple of num_groups=20, got 30"),
        ({"num_interests": 21}, "num_interests must lie in 1..num_groups=20, got 21"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        GeneratedClicks(**arguments)
