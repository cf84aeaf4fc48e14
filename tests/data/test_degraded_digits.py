import pytest
import torch

from leyden.data import DegradedDigits, Digits


def test_each_part_has_its_corruption():
    data, plain = DegradedDigits(corruption="contrast", test_corruption="noise", severity=2), Digits()
    for name in ("train", "val", "test"):
        tensors, clean = data.dataset(name).tensors, plain.dataset(name).tensors
        assert torch.equal(tensors["target"], clean["target"])
        assert data.dataset(name).sources == plain.dataset(name).sources
        if name != "test":  # 0.45 of the contrast is left
            mean = clean["input"].mean((1, 2, 3), keepdim=True)
            torch.testing.assert_close(tensors["input"], 0.55 * mean + 0.45 * clean["input"])
    # noise of size 0.2, where no pixel can reach 0 or 1
    test, clean = data.dataset("test").tensors["input"], plain.dataset("test").tensors["input"]
    change = (test - clean)[(clean > 0.49) & (clean < 0.51)]
    assert change.std().item() == pytest.approx(0.2, rel=0.1)
    assert abs(change.mean().item()) < 0.03


def test_is_always_the_same_and_clean_by_default():
    noisy = [DegradedDigits(corruption="noise", seed=seed).dataset("train").tensors["input"] for seed in (0, 1)]
    assert torch.equal(*noisy)
    other = DegradedDigits(corruption="noise", split_seed=1).dataset("val").tensors["input"]
    assert not torch.equal(other, DegradedDigits(corruption="noise").dataset("val").tensors["input"])
    for name in ("train", "test"):
        clean = Digits().dataset(name).tensors["input"]
        assert torch.equal(DegradedDigits().dataset(name).tensors["input"], clean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruption": "fog"}, "corruption must be one of noise, blur, .*, or None, got 'fog'"),
        ({"test_corruption": "fog"}, "test_corruption must be one of noise"),
        ({"severity": 6}, r"severity must lie in 1\.\.5, got 6"),
        ({"mean": 0.5}, "mean and std must be left out"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DegradedDigits(**arguments)
