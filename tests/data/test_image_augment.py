import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from leyden.core import sample_keys
from leyden.data import (
    ColorJitter,
    Compose,
    Cutout,
    GaussianNoise,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    TwoViews,
)

ALL = {
    "crop": RandomCrop(2),
    "reflect": RandomCrop(2, padding_mode="reflect"),
    "flip": HorizontalFlip(),
    "affine": RandomAffine(degrees=30.0, translate=0.2, scale=(0.8, 1.2)),
    "resized": RandomResizedCrop(),
    "jitter": ColorJitter(0.4, 0.4, 0.4),
    "cutout": Cutout(3),
    "noise": GaussianNoise(0.1),
    "compose": Compose([RandomCrop(1), HorizontalFlip(), GaussianNoise(0.1)]),
    "views": TwoViews(Compose([HorizontalFlip()]), strong=Cutout(4), second=RandomCrop(1)),
}


def images(num_samples, channels=3, height=6, width=8):
    return torch.rand(num_samples, channels, height, width, generator=torch.Generator().manual_seed(0))


def keys(num_samples):
    return sample_keys(1, 2, torch.arange(num_samples))


def apply(augment, pictures, numbers=None):
    return augment({"input": pictures}, keys(len(pictures)) if numbers is None else numbers)["input"]


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_depends_on_the_keys_alone(name):
    pictures, numbers, augment = images(64), keys(64), ALL[name]
    before, state = pictures.clone(), torch.get_rng_state()
    batch = augment({"input": pictures, "target": torch.arange(64)}, numbers)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pictures, before)
    assert torch.equal(batch["target"], torch.arange(64))
    views = [key for key in batch if key.startswith("input")]
    for view in views:
        assert (batch[view].shape, batch[view].dtype) == (pictures.shape, pictures.dtype)
        assert not torch.equal(batch[view], pictures)

    again = augment({"input": pictures}, numbers)
    order = torch.tensor([(7 * i + 3) % 64 for i in range(40)])  # another order, and fewer: another process's share
    shared = augment({"input": pictures[order]}, numbers[order])
    other = augment({"input": pictures}, numbers + 1)
    for view in views:
        assert torch.equal(again[view], batch[view])
        assert torch.equal(shared[view], batch[view][order])
        assert not torch.equal(other[view], batch[view])


@pytest.mark.parametrize("name", ALL)
def test_half_precision_stays(name):
    pictures = images(8).to(torch.bfloat16)
    assert apply(ALL[name], pictures).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["affine", "resized"])
def test_places_are_exact_in_half_precision(name):
    stripes = (torch.arange(512) % 2).float().expand(4, 1, 4, 512)
    half = apply(ALL[name], stripes.to(torch.bfloat16)).float()
    torch.testing.assert_close(half, apply(ALL[name], stripes), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("augment", [RandomCrop(1), HorizontalFlip(), RandomAffine(), Cutout(1), GaussianNoise(1.0)])
def test_only_images_are_taken(augment):
    with pytest.raises(ValueError, match=r"needs images \[N, C, H, W\], got input of shape \(4, 3\)"):
        augment({"input": torch.zeros(4, 3)}, keys(4))


def test_crop_moves_by_up_to_the_padding_each_place_alike():
    pictures = torch.zeros(5000, 1, 7, 7)
    pictures[:, :, 3, 3] = 1.0  # stays inside whatever the move
    moved = apply(RandomCrop(2), pictures)
    places = moved.flatten(1).argmax(1)
    assert moved.sum((1, 2, 3)).unique().tolist() == [1.0]
    counts = places.bincount(minlength=49).view(7, 7)
    assert counts[1:6, 1:6].sum() == 5000  # 25 places, 200 each, standard deviation 13.9
    assert counts[1:6, 1:6].min() > 140
    assert counts[1:6, 1:6].max() < 260


@pytest.mark.parametrize(("mode", "outside"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge")])
def test_a_crop_is_a_window_of_the_padded_image(mode, outside):
    pictures = images(30, channels=2, height=4, width=5)
    cropped = apply(RandomCrop(2, padding_mode=mode), pictures).numpy()
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=outside)
    for i in range(30):
        windows = [padded[i, :, top : top + 4, left : left + 5] for top in range(5) for left in range(5)]
        assert any(np.array_equal(window, cropped[i]) for window in windows)


def test_flip():
    pictures = images(2000, channels=1, height=2, width=3)
    assert torch.equal(apply(HorizontalFlip(0.0), pictures), pictures)
    assert torch.equal(apply(HorizontalFlip(1.0), pictures), pictures[..., [2, 1, 0]])
    some = apply(HorizontalFlip(0.25), pictures)
    flipped = (some == pictures[..., [2, 1, 0]]).all(-1).all(-1)[:, 0]
    same = (some == pictures).all(-1).all(-1)[:, 0]
    assert (flipped ^ same).all()
    assert 430 < flipped.sum() < 570  # expected 500, standard deviation 19


def test_affine_of_nothing_is_the_identity():
    pictures = images(5)
    torch.testing.assert_close(apply(RandomAffine(), pictures), pictures, atol=1e-5, rtol=0)


def affine_reference(picture, angle, factor, move):
    """Pixel by pixel in float64: old place = R(-angle) / factor (new place - middle - move) + middle; bilinear."""
    height, width = picture.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            dx, dy = x - (width - 1) / 2 - move[0], y - (height - 1) / 2 - move[1]
            old_x = (math.cos(angle) * dx + math.sin(angle) * dy) / factor + (width - 1) / 2
            old_y = (-math.sin(angle) * dx + math.cos(angle) * dy) / factor + (height - 1) / 2
            for row in (math.floor(old_y), math.floor(old_y) + 1):
                for column in (math.floor(old_x), math.floor(old_x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(old_y - row)) * (1 - abs(old_x - column))
                        result[y, x] += share * picture[row, column]
    return result


def test_affine_is_that_of_pixel_space(monkeypatch):
    pictures = images(3, channels=1, height=5, width=9)
    # of the four numbers in [0, 1): angle, scale, move along x and along y
    draws = torch.tensor([[0.75, 0.25, 0.5, 0.5], [0.125, 1.0, 0.9, 0.2], [0.5, 0.0, 1.0, 0.0]])
    monkeypatch.setattr("leyden.data.image_augment.uniform", lambda keys, *shape: draws)
    got = apply(RandomAffine(degrees=60.0, translate=0.25, scale=(0.5, 1.5)), pictures)
    for i, (a, s, x, y) in enumerate(draws.double().tolist()):
        angle, factor = math.radians(60.0) * (2 * a - 1), 0.5 + s
        move = (0.25 * 9 * (2 * x - 1), 0.25 * 5 * (2 * y - 1))
        expected = affine_reference(pictures[i, 0].double().numpy(), angle, factor, move)
        np.testing.assert_allclose(got[i, 0], expected, atol=2e-5)


def test_a_quarter_turn(monkeypatch):
    monkeypatch.setattr("leyden.data.image_augment.uniform", lambda keys, *shape: torch.tensor([[1.0, 0.0, 0.5, 0.5]]))
    picture = images(1, height=4, width=4)
    turned = apply(RandomAffine(degrees=90.0), picture)
    torch.testing.assert_close(turned, picture.rot90(-1, (2, 3)), atol=1e-5, rtol=0)


def test_a_resized_crop_is_that_of_pillow(monkeypatch):
    pictures = images(3, channels=1, height=6, width=8)
    # of the four numbers in [0, 1): area, shape, and place along x and along y
    draws = torch.tensor([[0.0, 0.5, 0.0, 1.0], [0.5, 0.9, 0.3, 0.6], [0.9, 0.0, 1.0, 0.5]])
    monkeypatch.setattr("leyden.data.image_augment.uniform", lambda keys, *shape: draws)
    got = apply(RandomResizedCrop((0.25, 0.75), (0.5, 2.0)), pictures)
    for picture, result, (a, r, x, y) in zip(pictures, got, draws.tolist(), strict=True):
        area, ratio = 48 * (0.25 + 0.5 * a), 2.0 ** (2 * r - 1)
        width, height = min((area * ratio) ** 0.5, 8.0), min((area / ratio) ** 0.5, 6.0)
        left, top = (8 - width) * x, (6 - height) * y
        whole = Image.fromarray(picture[0].numpy())
        box = (left, top, left + width, top + height)
        expected = whole.resize((8, 6), Image.Resampling.BILINEAR, box=box)
        np.testing.assert_allclose(result[0], np.array(expected), atol=1e-5)


def test_a_crop_of_all_is_the_identity():
    pictures = images(5, height=8)
    torch.testing.assert_close(apply(RandomResizedCrop((1.0, 1.0), (1.0, 1.0)), pictures), pictures, atol=1e-5, rtol=0)


def pillow(picture, enhance, factor):
    image = Image.fromarray((picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    return torch.from_numpy(np.array(enhance(image).enhance(factor))).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("arguments", "enhance"),
    [
        ({"brightness": 0.8}, ImageEnhance.Brightness),
        ({"contrast": 0.8}, ImageEnhance.Contrast),
        ({"saturation": 0.8}, ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.9])
def test_jitter_is_that_of_pillow(monkeypatch, arguments, enhance, draw):
    monkeypatch.setattr("leyden.data.image_augment.uniform", lambda keys, *shape: torch.full((len(keys), *shape), draw))
    picture = (images(1) * 255).round() / 255
    expected = pillow(picture[0], enhance, 0.2 + 1.6 * draw)
    torch.testing.assert_close(apply(ColorJitter(**arguments), picture)[0], expected, atol=2.1 / 255, rtol=0)


def test_jitter_undoes_the_normalisation():
    pictures, mean, std = images(20), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    shift, scale = (torch.tensor(numbers).view(3, 1, 1) for numbers in (mean, std))
    jittered = apply(ColorJitter(0.4, 0.4, 0.4, mean=mean, std=std), (pictures - shift) / scale)
    torch.testing.assert_close(jittered * scale + shift, apply(ColorJitter(0.4, 0.4, 0.4), pictures), atol=1e-5, rtol=0)


def test_jitter_of_grey_images():
    pictures = 0.25 + images(500, channels=1) / 2
    factors = (apply(ColorJitter(brightness=0.5), pictures) / pictures).clamp(max=1.5).amax((1, 2, 3))
    assert 0.5 <= factors.min() < 0.52
    assert 1.45 < factors.max() <= 1.5
    contrast = apply(ColorJitter(contrast=0.3), pictures)
    torch.testing.assert_close(contrast.mean((1, 2, 3)), pictures.mean((1, 2, 3)), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="saturation must be 0 for images that have 1 channels"):
        apply(ColorJitter(saturation=0.3), pictures)
    with pytest.raises(ValueError, match="need one or three channels, got 2"):
        apply(ColorJitter(contrast=0.3), images(2, channels=2))


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_cutout_hides_one_square_that_may_reach_outside(size):
    hidden = apply(Cutout(size), torch.ones(3000, 2, 6, 8)) == 0.0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    expected = set()
    for y in range(6):
        for x in range(8):
            square = torch.zeros(6, 8, dtype=torch.bool)
            top, left = y - size // 2, x - size // 2
            square[max(top, 0) : top + size, max(left, 0) : left + size] = True
            expected.add(tuple(square.flatten().tolist()))
    assert {tuple(square.flatten().tolist()) for square in hidden[:, 0]} == expected


def test_noise_is_normal():
    noise = apply(GaussianNoise(0.5), torch.ones(200, 3, 10, 10)) - 1.0  # 60,000 numbers
    assert noise.mean().abs() < 4 * 0.5 / 60000**0.5
    assert noise.std() == pytest.approx(0.5, rel=0.015)
    assert (noise.abs() < 0.5).float().mean() == pytest.approx(0.6827, abs=0.008)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "padding must be at least 1, got 0"),
        (lambda: RandomCrop(1, padding_mode="wrap"), "padding_mode must be .*, got 'wrap'"),
        (lambda: HorizontalFlip(1.5), r"p must lie in \[0, 1\], got 1.5"),
        (lambda: RandomAffine(degrees=-1.0), "degrees and translate must be at least 0, got -1.0 and 0.0"),
        (lambda: RandomAffine(scale=(1.2, 0.8)), "scale must be a range of positive numbers"),
        (lambda: RandomResizedCrop((0.5, 1.2)), r"scale must be a range in \(0, 1\], got \(0.5, 1.2\)"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio must be a range of positive numbers"),
        (lambda: ColorJitter(contrast=-0.1), "must be at least 0, got 0.0, -0.1, 0.0"),
        (lambda: Cutout(0), "size must be at least 1, got 0"),
        (lambda: GaussianNoise(-1.0), "std must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
