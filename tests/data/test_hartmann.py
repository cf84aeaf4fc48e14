import pytest
import torch

from leyden.data import HartmannDesigns, hartmann6


def test_known_maxima():
    # as D. Bingham and S. Surjanovic's library of test functions gives them: the largest, and the second
    x = [
        [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573],
        [0.4046, 0.8824, 0.8461, 0.5740, 0.1389, 0.0385],
    ]
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    values = hartmann6(x)
    assert values.tolist() == pytest.approx([3.32237, 3.2032], abs=2e-4)
    values.sum().backward()
    assert x.grad.abs().max() < 0.02


def test_the_better_designs_are_the_test():
    data = HartmannDesigns(num_designs=100, known=0.7)
    parts = {name: data.dataset(name).tensors for name in ("train", "val", "test")}
    assert {name: tuple(part["input"].shape) for name, part in parts.items()} == {
        "train": (63, 6),
        "val": (7, 6),
        "test": (30, 6),
    }
    known = torch.cat([parts["train"]["target"], parts["val"]["target"]])
    assert known.max() < parts["test"]["target"].min()
    assert known.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert known.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    inputs = torch.cat([part["input"] for part in parts.values()])
    assert inputs.min() >= 0.0
    assert inputs.max() <= 1.0
    assert inputs.unique(dim=0).shape == (100, 6)
    order = hartmann6(parts["train"]["input"]).argsort(stable=True)
    assert torch.equal(parts["train"]["target"].flatten().argsort(stable=True), order)


def test_the_draw_is_that_of_split_seed():
    def inputs(**kwargs):
        return HartmannDesigns(num_designs=100, **kwargs).dataset("train").tensors["input"]

    assert torch.equal(inputs(seed=1), inputs(seed=2))
    assert not torch.equal(inputs(), inputs(split_seed=1))


def test_bad_input():
    with pytest.raises(ValueError, match=r"known must lie in \(0, 1\), got 1"):
        HartmannDesigns(known=1.0)
    with pytest.raises(ValueError, match="num_designs must give 10 known and 10 other designs, got 40 with known=0.8"):
        HartmannDesigns(num_designs=40)
