import pytest
import torch
from sklearn.datasets import load_digits

from leyden.data import Digits, symmetric_label_noise


def parts(**kwargs):
    data = Digits(**kwargs)
    return {name: data.dataset(name).tensors for name in ("train", "val", "test")}


def test_the_three_parts_are_the_digits():
    found = parts()
    assert [len(part["target"]) for part in found.values()] == [1258, 180, 359]
    train = found["train"]["input"]
    assert (train.shape, train.dtype) == ((1258, 1, 8, 8), torch.float32)
    assert (train.min(), train.max()) == (0.0, 1.0)
    together = torch.cat([torch.cat([part["input"].flatten(1), part["target"][:, None]], 1) for part in found.values()])
    digits = load_digits()
    expected = [[*row, label] for row, label in zip((digits.data / 16.0).tolist(), digits.target.tolist(), strict=True)]
    assert sorted(together.tolist()) == sorted(expected)
    counts = found["test"]["target"].bincount()
    assert counts.min() >= 34  # the classes have 174 to 183 samples: 20 % of them are 34.8 to 36.6
    assert counts.max() <= 37


def test_the_test_set_does_not_depend_on_the_training_seed():
    first, second, other = parts(seed=1), parts(seed=2), parts(split_seed=1)
    assert torch.equal(first["test"]["input"], second["test"]["input"])
    assert not torch.equal(first["test"]["input"], other["test"]["input"])


def test_few_labels_are_stratified_and_nested():
    few, more = parts(num_train=40), parts(num_train=100)
    assert few["train"]["target"].bincount().tolist() == [4] * 10
    assert torch.equal(few["train"]["input"], more["train"]["input"][:40])
    assert torch.equal(few["test"]["input"], parts()["test"]["input"])


def test_label_noise_is_exact_and_kept_apart():
    clean, noisy = parts(), parts(label_noise=0.4)
    assert "clean_target" not in clean["train"]
    assert torch.equal(noisy["train"]["clean_target"], clean["train"]["target"])
    assert (noisy["train"]["target"] != noisy["train"]["clean_target"]).sum() == round(0.4 * 1258)
    for name in ("val", "test"):
        assert noisy[name].keys() == {"input", "target"}
        assert torch.equal(noisy[name]["target"], clean[name]["target"])


def test_label_noise_is_symmetric():
    target = torch.full((30000,), 2)
    counts = symmetric_label_noise(target, 0.9, 10, seed=0).bincount(minlength=10)
    assert counts[2] == 3000
    others = counts[[0, 1, 3, 4, 5, 6, 7, 8, 9]]  # expected 3000 each, standard deviation 52
    assert others.min() > 2750
    assert others.max() < 3250
    assert target.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_train": 0}, r"num_train must lie in 1\.\.1258, got 0"),
        ({"label_noise": 1.5}, "label_noise must lie in"),
        ({"std": 0.0}, "std must be positive"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Digits(**kwargs)


def test_rare_classes_are_so_in_training_only():
    few, all_ = parts(class_shares={8: 0.2, 3: 0.0}), parts()
    expected = all_["train"]["target"].bincount()
    expected[8], expected[3] = round(0.2 * int(expected[8])), 0
    assert torch.equal(few["train"]["target"].bincount(minlength=10), expected)
    assert torch.equal(few["test"]["target"], all_["test"]["target"])
    with pytest.raises(ValueError, match=r"class_shares must map classes 0..9 to shares in \[0, 1\], got 10: 0.5"):
        Digits(class_shares={10: 0.5})


def test_pixels_can_lie_around_zero():
    for name, part in parts(mean=0.5, std=0.5).items():
        torch.testing.assert_close(part["input"], 2.0 * parts()[name]["input"] - 1.0)
        assert part["input"].min() == -1.0
