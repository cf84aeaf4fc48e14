import pytest
import torch

from leyden.data import GeneratedApplicants
from leyden.losses import distance_correlation


def tensors(part="train", **arguments):
    return GeneratedApplicants(num_train=4000, num_eval=1000, **arguments).dataset(part).tensors


def test_chances():
    """By numerical integration over skill and age, both normal: the variance of the log-odds within a pair is 2.5."""
    data = tensors()
    pair = data["gender"] != data["region"]
    z = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    density = (-z.square() / 2).exp()
    chance = ((1.0 + 2.5**0.5 * z).sigmoid() * density).sum() / density.sum()
    assert data["target"][pair].double().mean().item() == pytest.approx(chance.item(), abs=0.03)
    assert data["target"][~pair].double().mean().item() == pytest.approx(1.0 - chance.item(), abs=0.03)
    for name in ("gender", "region"):
        share = [data["target"][data[name] == value].double().mean().item() for value in (0, 1)]
        assert share == [pytest.approx(0.5, abs=0.03)] * 2


def test_traces_and_attributes():
    data = tensors()
    pair = torch.where(data["gender"] != data["region"], 1.0, -1.0)
    noise = data["input"][:, 2:5] - torch.stack([pair, pair, data["age"]], 1)
    assert noise.mean(0).abs().max() < 0.06
    torch.testing.assert_close(torch.cov(noise.T), torch.eye(3), atol=0.08, rtol=0.0)
    assert data["age"].std().item() == pytest.approx(1.0, abs=0.05)
    rows = slice(0, 1000)
    attributes = torch.stack([data["gender"], data["region"]], 1)[rows]
    assert distance_correlation(data["age"][rows], attributes, unbiased=True).abs() < 0.01
    assert distance_correlation(data["gender"][rows], data["region"][rows], unbiased=True).abs() < 0.01


def test_without_a_gap_the_attributes_do_not_count():
    data = tensors(gap=0.0)
    pair = data["gender"] != data["region"]
    assert data["target"][pair].double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_parts_and_seeds():
    one, other = GeneratedApplicants(num_train=20, num_eval=10), GeneratedApplicants(num_train=30, data_seed=1)
    parts = {name: one.dataset(name).tensors["input"] for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [20, 10, 10]
    assert not torch.equal(parts["val"], parts["test"])
    assert not torch.equal(parts["train"], other.dataset("train").tensors["input"][:20])
    longer = GeneratedApplicants(num_train=30)
    assert torch.equal(parts["train"], longer.dataset("train").tensors["input"][:20])


@pytest.mark.parametrize("arguments", [{"num_train": 0}, {"num_eval": 0}, {"gap": -1.0}])
def test_bad_input(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least"):
        GeneratedApplicants(**arguments)
