import pytest
import torch

from leyden.data import FeatureNoise


def samples(split="train", **kwargs):
    tensors = FeatureNoise(**kwargs).dataset(split).tensors
    return tensors["input"], tensors["target"], tensors["group"]


def test_patches_by_what_they_hold():
    x, target, group = samples(num_train=200, rare=0.15, dim=50, num_patches=6, num_distractors=2)
    assert x.shape == (200, 6, 50)
    assert x.dtype == torch.float32
    assert torch.equal(x[:, 0], torch.eye(50)[target + 2 * group])
    distractors = x[:, 1:3]
    assert distractors.unique().tolist() == pytest.approx([0.0, 0.3])
    assert torch.equal(distractors.count_nonzero(-1), torch.ones(200, 2, dtype=torch.int64))
    of_class_0 = (distractors[..., 0] > 0).float().mean().item()
    assert of_class_0 == pytest.approx(0.5, abs=0.1)
    assert (distractors[..., :2] > 0).any(-1).all()  # common features only
    noise = x[:, 3:]
    assert noise.mean().item() == pytest.approx(0.0, abs=3e-3)
    assert noise.std().item() == pytest.approx(0.15, rel=0.01)


@pytest.mark.parametrize(("split", "size", "num_rare"), [("train", 300, 30), ("val", 200, 20), ("test", 1000, 1000)])
def test_sizes_and_shares(split, size, num_rare):
    _, target, group = samples(split, dim=4)
    assert len(target) == size
    assert group.sum() == num_rare
    for rare in (0, 1):
        counts = target[group == rare].bincount(minlength=2).tolist()
        assert counts[0] == counts[1]


def test_parts_and_seeds_differ():
    assert torch.equal(samples(seed=1)[0], samples(seed=2)[0])
    assert not torch.equal(samples(dim=9)[0], samples(dim=9, data_seed=1)[0])
    assert not torch.equal(samples(dim=9)[0][:200, 2:], samples("val", dim=9)[0][:, 2:])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"rare": 1.1}, r"rare must lie in \[0, 1\], got 1.1"),
        ({"num_distractors": 5}, "num_distractors must be at least 0 and below num_patches, got 5"),
        ({"dim": 3}, "dim must be at least 4, one per feature, got 3"),
        ({"noise": -0.1}, "distractor_size and noise must be at least 0, got 0.3 and -0.1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FeatureNoise(**kwargs)
