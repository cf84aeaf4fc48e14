import json
import sys

import pytest
import torch

datasets = pytest.importorskip("datasets")

from leyden.data import HuggingFaceDataset, HuggingFaceText  # noqa: E402

NAMES = ("train", "val", "test")


def whole(data, name):
    part = data.dataset(name)
    return part.__getitems__(list(range(len(part))))


@pytest.fixture
def reviews(tmp_path):
    """20 rows: a text, a class as text, a class label, and numbers."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "mood": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "vector": datasets.Sequence(datasets.Value("float32"), length=2),
            "score": datasets.Value("float64"),
            "stars": datasets.Value("int64"),
        }
    )
    rows = {
        "text": ["né " + "x" * i for i in range(20)],
        "mood": ["sad" if i % 2 else "happy" for i in range(20)],
        "label": [i % 2 for i in range(20)],
        "vector": [[float(i), -float(i)] for i in range(20)],
        "score": [i / 2 for i in range(20)],
        "stars": [1 + 2 * (i % 3) for i in range(20)],
    }
    path = str(tmp_path / "saved")
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("column", "class_names", "expected"),
    [
        ("label", ["bad", "good"], lambda i: i % 2),
        ("mood", ["happy", "sad"], lambda i: i % 2),
        ("stars", ["1", "3", "5"], lambda i: i % 3),
        ("score", [], lambda i: [i / 2]),
    ],
)
def test_numbers(reviews, column, class_names, expected):
    data = HuggingFaceDataset(reviews, input_column="vector", target_column=column, test_fraction=0.3)
    assert data.class_names == class_names
    assert data.num_classes == (len(class_names) or None)
    seen = []
    for name in NAMES:
        batch = whole(data, name)
        numbers = batch["input"][:, 0].long().tolist()
        assert batch["input"][:, 1].tolist() == [-float(i) for i in numbers]
        assert batch["target"].tolist() == [expected(i) for i in numbers]
        assert batch["target"].dtype == (torch.int64 if class_names else torch.float32)
        seen.append(numbers)
    assert [len(numbers) for numbers in seen] == [12, 2, 6]
    assert sorted(number for numbers in seen for number in numbers) == list(range(20))
    assert data.dataset("train")[3]["input"].tolist() == whole(data, "train")["input"][3].tolist()


def test_bytes_of_texts(reviews):
    data = HuggingFaceText(reviews, target_column="label", max_length=6)
    assert data.vocab_size == 256
    batch = whole(data, "train")
    assert (batch["input"].shape, batch["input"].dtype) == ((16, 6), torch.int64)
    for tokens, mask in zip(batch["input"].tolist(), batch["mask"].tolist(), strict=True):
        text = bytes(tokens[: sum(mask)])
        assert ("né " + "x" * 20).encode().startswith(text)
        assert len(text) >= 4
        assert mask == [True] * len(text) + [False] * (6 - len(text))
        assert tokens[len(text) :] == [0] * (6 - len(text))
    lengths = [sum(mask) for name in NAMES for mask in whole(data, name)["mask"].tolist()]
    assert sorted(lengths) == [4, 5] + [6] * 18


def test_tokens_of_a_transformers_tokenizer(reviews, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {"[PAD]": 0, "[UNK]": 1, "né": 2, "x": 3, "xx": 4}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = str(tmp_path / "tokenizer")
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    data = HuggingFaceText(reviews, target_column="stars", max_length=3, tokenizer=folder)
    assert data.vocab_size == 5
    rows = sorted(row for name in NAMES for row in whole(data, name)["input"].tolist())
    assert rows == sorted([[2, 0, 0], [2, 3, 0], [2, 4, 0], *[[2, 1, 0]] * 17])

    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]").save_pretrained(folder)
    with pytest.raises(ValueError, match="has no padding token"):
        HuggingFaceText(reviews, target_column="stars", tokenizer=folder)


def test_parts_of_the_data_set_itself(tmp_path):
    parts = {
        name: datasets.Dataset.from_dict(
            {"x": [[float(first + i)] for i in range(10)], "y": [i % 2 for i in range(10)]}
        )
        for name, first in (("train", 0), ("validation", 100))
    }
    path = str(tmp_path / "saved")
    datasets.DatasetDict(parts).save_to_disk(path)
    columns = {"input_column": "x", "target_column": "y"}
    splits = {"train": "train", "val": "validation"}
    data = HuggingFaceDataset(path, splits=splits, test_fraction=0.2, **columns)
    assert whole(data, "val")["input"][:, 0].tolist() == [100.0 + i for i in range(10)]
    assert (len(data.dataset("train")), len(data.dataset("test"))) == (8, 2)
    with pytest.raises(ValueError, match=r"one of \['train', 'validation'\] of .*, got 'test': 'test'"):
        HuggingFaceDataset(path, splits={"train": "train", "test": "test"}, **columns)
    with pytest.raises(ValueError, match="splits must say what 'train' is"):
        HuggingFaceDataset(path, splits={"val": "validation"}, **columns)


def test_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    features = datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")})
    pictures = [image.new("RGB", (6, 4), (i, i, i)) for i in range(10)]
    path = str(tmp_path / "saved")
    datasets.Dataset.from_dict({"image": pictures, "y": [i % 2 for i in range(10)]}, features=features).save_to_disk(
        path
    )
    columns = {"input_column": "image", "target_column": "y"}
    data = HuggingFaceDataset(path, image_size=3, mean=(0.0,) * 3, std=(1.0,) * 3, **columns)
    batch = whole(data, "train")
    assert batch["input"].shape == (8, 3, 3, 3)
    greys = (batch["input"] * 255).round().long()
    assert torch.equal(greys, greys[:, :1, :1, :1].expand_as(greys))
    assert torch.equal(greys[:, 0, 0, 0] % 2, batch["target"])
    with pytest.raises(ValueError, match="image_size must be given: the column 'image' holds pictures"):
        HuggingFaceDataset(path, **columns)


def test_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"row {i}", "y": "ab"[i % 2]} for i in range(10)]
    table, lines = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    table.write_text("\n".join(["text,y", *[f"{row['text']},{row['y']}" for row in rows]]) + "\n")
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n")
    for path in (table, lines):
        data = HuggingFaceText(str(path), target_column="y", max_length=8)
        assert data.class_names == ["a", "b"]
        texts = [bytes(row).rstrip(b"\0").decode() for name in NAMES for row in whole(data, name)["input"].tolist()]
        assert sorted(texts) == [row["text"] for row in rows]


def test_errors(reviews, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nowhere\.csv"):
        HuggingFaceText(str(tmp_path / "nowhere.csv"), target_column="y")
    with pytest.raises(ValueError, match="no column 'lable'; the nearest names are 'label'"):
        HuggingFaceText(reviews, target_column="lable")
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        HuggingFaceText(reviews, target_column="label", max_length=0)


def test_hidden_labels_are_refused(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    parts = {
        name: datasets.Dataset.from_dict({"text": ["x"] * 10, "label": labels}, features=features)
        for name, labels in (("train", [0, 1] * 5), ("test", [-1] * 10))
    }
    path = str(tmp_path / "saved")
    datasets.DatasetDict(parts).save_to_disk(path)
    with pytest.raises(ValueError, match="the targets of 'test' are not known"):
        HuggingFaceText(path, target_column="label", splits={"train": "train", "test": "test"})
    assert HuggingFaceText(path, target_column="label").num_classes == 2


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'leyden\[text\]'"):
        HuggingFaceText(str(tmp_path), target_column="y")
