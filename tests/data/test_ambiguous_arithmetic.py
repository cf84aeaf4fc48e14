import pytest
import torch

from leyden.data import AmbiguousArithmetic


def samples(part="train", **arguments):
    tensors = AmbiguousArithmetic(**arguments).dataset(part).tensors
    a, b = tensors["input"].unflatten(1, (2, -1)).argmax(-1).unbind(1)
    return a, b, tensors["target"]


@pytest.mark.parametrize(
    ("chances", "operator"), [((1, 0, 0), torch.add), ((0, 1, 0), torch.sub), ((0, 0, 1), torch.mul)]
)
def test_one_operator(chances, operator):
    a, b, target = samples(chances=chances, modulus=7)
    assert torch.equal(operator(a, b) % 7, target)


def test_shares_of_the_operators():
    a, b, target = samples(num_train=20_000, modulus=101, chances=(0.5, 0.3, 0.2))
    answers = torch.stack([a + b, a - b, a * b]) % 101
    is_clear = (answers.sort(0).values.diff(dim=0) != 0).all(0)  # three different answers
    for answer, chance in zip(answers, (0.5, 0.3, 0.2), strict=True):
        assert (answer == target)[is_clear].double().mean().item() == pytest.approx(chance, abs=0.015)
    assert torch.bincount(a, minlength=101).min() > 100


def test_parts_and_seeds():
    data = AmbiguousArithmetic(num_train=50, num_eval=30)
    assert [len(data.dataset(part)) for part in ("train", "val", "test")] == [50, 30, 30]
    assert data.num_classes == 20
    inputs = [data.dataset(part).tensors["input"] for part in ("val", "test")]
    assert not torch.equal(*inputs)
    again = AmbiguousArithmetic(num_eval=30, seed=5).dataset("test").tensors["input"]
    assert torch.equal(again, inputs[1])
    other = AmbiguousArithmetic(num_eval=30, data_seed=1).dataset("test").tensors["input"]
    assert not torch.equal(other, inputs[1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"modulus": 1}, "modulus must be at least 2, got 1"),
        ({"num_train": 0}, "num_train and num_eval must be at least 1, got 0 and 2000"),
        ({"chances": (0.5, 0.5)}, "chances must be three numbers"),
        ({"chances": (0.9, 0.3, -0.2)}, "chances must be three numbers"),
        ({"chances": (0.5, 0.3, 0.3)}, "chances must be three numbers"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        AmbiguousArithmetic(**arguments)
