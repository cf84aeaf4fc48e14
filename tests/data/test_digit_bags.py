import pytest
import torch

from leyden.data import DigitBags, Digits


def nines_and_others(part):
    tensors = Digits().dataset(part).tensors
    is_nine = tensors["target"] == 9
    return [{image.numpy().tobytes() for image in tensors["input"][rows]} for rows in (is_nine, ~is_nine)]


@pytest.mark.parametrize(("part", "size"), [("train", 50), ("val", 30), ("test", 30)])
def test_what_is_in_the_bags(part, size):
    data = DigitBags(num_bags=50, num_eval_bags=30, min_size=5, max_size=8, max_positive=4).dataset(part)
    assert len(data) == size
    nines, others = nines_and_others(part)
    sizes, counts, places = set(), set(), []
    for number in range(size):
        bag = data[number]
        sizes.add(len(bag["input"]))
        for image, positive in zip(bag["input"], bag["instance_target"], strict=True):
            assert image.numpy().tobytes() in (nines if positive else others)
        count = int(bag["instance_target"].sum())
        assert bag["target"] == (count > 0)
        counts.add(count)
        places += bag["instance_target"].nonzero()[:, 0].tolist()
    assert sizes == {5, 6, 7, 8}
    assert counts == {0, 1, 2, 3, 4}
    assert data.target.sum() == size // 2
    assert set(places) >= {0, 1, 2, 3, 4, 5}  # anywhere in the bag


def test_bags_depend_on_the_split_seed_alone():
    first, again, other = DigitBags(seed=0), DigitBags(seed=1), DigitBags(split_seed=1)
    assert torch.equal(first.dataset("train").instances, again.dataset("train").instances)
    assert not torch.equal(first.dataset("train").sizes, other.dataset("train").sizes)
    assert not torch.equal(first.dataset("val").sizes, first.dataset("test").sizes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"digit": 10}, r"digit must lie in 0\.\.9, got 10"),
        ({"num_bags": 0}, "num_bags must be at least 1, got 0"),
        ({"num_eval_bags": 0}, "num_eval_bags must be at least 1, got 0"),
        ({"max_positive": 31}, "min_size must lie between max_positive, 31, and max_size, 60, got 30"),
        ({"max_size": 29}, "min_size must lie between max_positive, 3, and max_size, 29, got 30"),
        ({"label_noise": 0.1}, "DigitBags has no label_noise"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        DigitBags(**given)


def test_a_digit_without_images():
    with pytest.raises(ValueError, match="must leave images of 9 and of others, got 0 and 11"):
        DigitBags(class_shares={9: 0.0}, num_train=12).setup("fit")
