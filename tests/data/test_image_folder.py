import sys

import numpy as np
import pytest
import torch
from PIL import Image

from leyden.data import ImageFolder, image_to_pixels

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def write_class(folder, first, count, ending=".png"):
    """Pictures of 6 x 4 pixels of one grey: first, first + 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for grey in range(first, first + count):
        Image.new("RGB", (6, 4), (grey, grey, grey)).save(folder / f"{grey}{ending}")


def greys(part):
    return {round(part[i]["input"][0, 0, 0].item() * 255): part[i]["target"].item() for i in range(len(part))}


def test_one_tree_is_split(tmp_path):
    write_class(tmp_path / "dog", 0, 20)
    write_class(tmp_path / "cat", 100, 20, ".PNG")
    write_class(tmp_path / "cat" / "more", 120, 10)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    data = ImageFolder(str(tmp_path), 4, val_fraction=0.1, test_fraction=0.2, **PLAIN)
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    parts = [greys(data.dataset(name)) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [35, 5, 10]
    expected = dict.fromkeys(range(20), 1) | dict.fromkeys(range(100, 130), 0)
    assert parts[0] | parts[1] | parts[2] == expected
    assert sorted(parts[2].values()) == [0] * 6 + [1] * 4


def test_given_parts_are_kept_and_the_missing_one_is_split_off(tmp_path):
    for name, first in (("train", 0), ("val", 100)):
        write_class(tmp_path / name / "cat", first, 10)
        write_class(tmp_path / name / "dog", first + 50, 10)
    data = ImageFolder(str(tmp_path), 4, test_fraction=0.2, **PLAIN)
    train, val, test = (greys(data.dataset(name)) for name in ("train", "val", "test"))
    assert val == dict.fromkeys(range(100, 110), 0) | dict.fromkeys(range(150, 160), 1)
    assert (len(train), len(test)) == (16, 4)
    assert train | test == dict.fromkeys(range(10), 0) | dict.fromkeys(range(50, 60), 1)


def test_a_class_may_be_absent_from_an_evaluation_part_but_not_new(tmp_path):
    write_class(tmp_path / "train" / "cat", 0, 4)
    write_class(tmp_path / "train" / "dog", 10, 4)
    write_class(tmp_path / "val" / "dog", 20, 2)
    write_class(tmp_path / "test" / "dog", 30, 2)
    data = ImageFolder(str(tmp_path), 4, **PLAIN)
    assert greys(data.dataset("val")) == {20: 1, 21: 1}
    write_class(tmp_path / "test" / "cow", 30, 2)
    with pytest.raises(ValueError, match="has the class 'cow', which .* has not"):
        ImageFolder(str(tmp_path), 4).setup("test")


def test_pictures_are_normalised_with_the_means_of_imagenet(tmp_path):
    write_class(tmp_path / "cat", 100, 10)
    sample = ImageFolder(str(tmp_path), 4).dataset("test")[0]["input"]
    grey = sample[0, 0, 0] * 0.229 + 0.485
    torch.testing.assert_close(sample[1, 0, 0], (grey - 0.456) / 0.224)
    torch.testing.assert_close(sample[2, 3, 3], (grey - 0.406) / 0.225)


def test_the_middle_square_is_kept():
    columns = np.array([10, 20, 30, 40, 50, 60], dtype=np.uint8)
    wide = Image.fromarray(np.broadcast_to(columns, (4, 6)).copy())
    pixels = image_to_pixels(wide, 4)
    assert (pixels.shape, pixels.dtype) == ((3, 4, 4), torch.uint8)
    assert pixels[:, 2].tolist() == [[20, 30, 40, 50]] * 3
    assert image_to_pixels(wide.transpose(Image.Transpose.ROTATE_270), 4)[0, :, 1].tolist() == [20, 30, 40, 50]


def test_the_shorter_side_is_resized():
    halves = np.zeros((8, 16), dtype=np.uint8)
    halves[:, 8:] = 200
    pixels = image_to_pixels(Image.fromarray(halves), 4)  # 8 x 4 pixels, of which 4 x 4 remain: two dark, two bright
    assert pixels.shape == (3, 4, 4)
    assert pixels[0, 0, 0] < 20
    assert pixels[0, 0, 3] > 180
    assert image_to_pixels(Image.new("L", (3, 2), 70), 5).unique().tolist() == [70]


def test_transparency_and_palettes_become_rgb():
    for mode in ("RGBA", "P", "L", "1"):
        assert image_to_pixels(Image.new(mode, (4, 4)), 4).shape == (3, 4, 4)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        ImageFolder(str(tmp_path / "nowhere"), 4)
    with pytest.raises(ValueError, match="one folder per class, but .* has no folders"):
        ImageFolder(str(tmp_path), 4)
    write_class(tmp_path / "cat", 0, 10)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        ImageFolder(str(tmp_path), 0)
    with pytest.raises(ValueError, match="val_fraction must lie"):
        ImageFolder(str(tmp_path), 4, val_fraction=0.01).setup("fit")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog has no picture"):
        ImageFolder(str(tmp_path), 4).setup("fit")


def test_a_broken_picture_is_named(tmp_path):
    write_class(tmp_path / "cat", 0, 10)
    broken = tmp_path / "cat" / "3.png"
    for content in (b"no picture", broken.read_bytes()[:50]):
        broken.write_bytes(content)
        data = ImageFolder(str(tmp_path), 4)
        parts = [data.dataset(name) for name in ("train", "val", "test")]
        (part,) = [part for part in parts if broken in part.paths]
        with pytest.raises(ValueError, match=r"3\.png cannot be decoded"):
            part[part.paths.index(broken)]


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"ImageFolder decodes pictures with Pillow: pip install 'leyden\[vision\]'"):
        ImageFolder(str(tmp_path), 4)
