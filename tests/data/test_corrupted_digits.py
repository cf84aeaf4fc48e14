import pytest
import torch
from scipy.ndimage import gaussian_filter

from leyden.core.random import sample_keys
from leyden.data import CORRUPTIONS, CorruptedDigits, Digits, corrupt


def pictures(count=50):
    return Digits().dataset("test").tensors["input"][:count].double(), sample_keys(0, 0, torch.arange(count))


def test_each_severity_changes_more():
    images, keys = pictures()
    for corruption in CORRUPTIONS:
        errors = [(corrupt(images, keys, corruption=corruption, severity=s) - images).abs().mean() for s in range(1, 6)]
        assert errors == sorted(errors), corruption
        assert errors[0] > 0.0


def test_values_by_hand():
    images, keys = pictures()
    bright = corrupt(images, keys, corruption="brightness", severity=2)
    torch.testing.assert_close(bright, (images + 0.2).clamp(max=1.0))
    grey = corrupt(images, keys, corruption="contrast", severity=3)
    torch.testing.assert_close(grey.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(grey.std((1, 2, 3)), 0.3 * images.std((1, 2, 3)))


def test_blur_is_that_of_scipy():
    images, keys = pictures(5)
    blurred = corrupt(images, keys, corruption="blur", severity=2)
    expected = gaussian_filter(images.numpy(), (0, 0, 0.6, 0.6), mode="nearest", radius=(0, 0, 2, 2))
    torch.testing.assert_close(blurred, torch.from_numpy(expected))


def test_noise_has_its_size_and_belongs_to_a_key():
    images, keys = torch.full((300, 1, 8, 8), 0.5), sample_keys(0, 0, torch.arange(300))
    noisy = corrupt(images, keys, corruption="noise", severity=1)
    assert (noisy - images).std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(corrupt(images[7:9], keys[7:9], corruption="noise", severity=1), noisy[7:9])


def test_continual_stream():
    data, clean = CorruptedDigits(corruptions=["contrast", "noise"], severity=4), Digits()
    stream, test = data.dataset("train").tensors, clean.dataset("test").tensors
    assert stream["domain"].tolist() == [0] * 359 + [1] * 359
    assert not stream["labeled"].any()
    assert (stream["target"] == -1).all()
    assert torch.equal(stream["clean_target"][:359].bincount(), test["target"].bincount())
    assert not torch.equal(stream["clean_target"][:359], stream["clean_target"][359:]), "one order for all blocks"
    keys = torch.arange(359)  # contrast asks for none
    corrupted = corrupt(test["input"], keys, corruption="contrast", severity=4)
    rows = torch.cdist(stream["input"][:359].flatten(1), corrupted.flatten(1)).argmin(1)
    assert torch.equal(stream["input"][:359], corrupted[rows])
    assert torch.equal(stream["clean_target"][:359], test["target"][rows])
    for name, other in (("source", "train"), ("val", "val"), ("test", "test")):
        assert torch.equal(data.dataset(name).tensors["input"], clean.dataset(other).tensors["input"])


def test_gradual_stream_rises_and_falls():
    data = CorruptedDigits(corruptions=["brightness"], severity=3, gradual=True, block_size=100)
    images = data.dataset("train").tensors["input"]
    assert images.amin((1, 2, 3)).view(5, 100).amin(1).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.1])


def test_stream_is_read_in_its_order():
    data = CorruptedDigits(batch_size=100)
    seen = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert seen.tolist() == list(range(1700))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"corruptions": ["fog"]}, "corruptions must be of noise, blur, .*, got fog"),
        ({"corruptions": []}, "one name or more"),
        ({"severity": 6}, "severity must lie"),
        ({"block_size": 360}, "block_size must lie"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        CorruptedDigits(**arguments)


@pytest.mark.parametrize(("corruption", "severity"), [("fog", 1), ("noise", 0)])
def test_unknown_corruption(corruption, severity):
    images, keys = pictures(1)
    with pytest.raises(ValueError, match="must"):
        corrupt(images, keys, corruption=corruption, severity=severity)
