"""The sources as a trainer and the command line use them."""

import jsonargparse
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from leyden.data import (
    BreastCancer,
    Compose,
    DataModule,
    Diabetes,
    Digits,
    HorizontalFlip,
    ImageFolder,
    PydocTopics,
    RandomCrop,
    TwoViews,
    Wine,
)


class Recorder(LightningModule):
    """Keeps the batches that it gets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.batches["train"].append(batch)
        return self.weight

    def validation_step(self, batch, batch_idx):
        self.batches["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.batches["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(data, epochs=1):
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, data)
    trainer.test(recorder, data, verbose=False)
    return recorder.batches


def rows(batches, key):
    return torch.cat([batch[key] for batch in batches])


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (Wine, (124, 18, 36)),
        (BreastCancer, (398, 57, 114)),
        (Diabetes, (310, 44, 88)),
        (Digits, (1258, 180, 359)),
        (lambda **kwargs: PydocTopics(context=512, **kwargs), None),
    ],
)
def test_a_run_sees_every_sample_once(make, sizes):
    data = make(batch_size=50, drop_last=False, seed=0)
    batches = run(data)
    for number, name in enumerate(("train", "val", "test")):
        part = data.dataset(name)
        if sizes is not None:
            assert len(part) == sizes[number]
        index = rows(batches[name], "index")
        assert sorted(index.tolist()) == list(range(len(part)))
        assert torch.equal(rows(batches[name], "input"), part.__getitems__(index.tolist())["input"])
        assert torch.equal(rows(batches[name], "target"), part.__getitems__(index.tolist())["target"])


def digits(**kwargs):
    views = TwoViews(weak=HorizontalFlip(), strong=Compose([RandomCrop(1), HorizontalFlip()]))
    return Digits(num_train=64, augment=views, seed=0, **kwargs)


def test_only_training_batches_are_augmented():
    data = digits(batch_size=64)
    batches = run(data, epochs=2)
    (first, second), (test,) = batches["train"], [torch.cat([batch["input"] for batch in batches["test"]])]
    assert first.keys() == {"input", "input_strong", "target", "index"}
    raw = data.dataset("train").tensors["input"][first["index"]]
    same = (first["input"] == raw).flatten(1).all(1)
    flipped = (first["input"] == raw.flip(-1)).flatten(1).all(1)
    assert (same | flipped).all()
    assert 10 < flipped.sum() < 54
    assert torch.equal(test, data.dataset("test").tensors["input"])

    order, order_2 = first["index"].argsort(), second["index"].argsort()
    assert not torch.equal(first["input"][order], second["input"][order_2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_neither_workers_nor_global_generator(num_workers):
    torch.manual_seed(1)
    one = run(digits(batch_size=16))["train"]
    torch.manual_seed(2)
    other = run(digits(batch_size=16, num_workers=num_workers))["train"]
    for batch, batch_2 in zip(one, other, strict=True):
        assert all(torch.equal(batch[key], batch_2[key]) for key in batch)


def test_pictures_are_decoded_in_workers(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for grey in range(10):
            Image.new("RGB", (5, 4), (100 * number + grey,) * 3).save(tmp_path / name / f"{grey}.png")
    batches = run(ImageFolder(str(tmp_path), 4, batch_size=8, num_workers=2, seed=0, std=(1.0,) * 3, mean=(0.0,) * 3))
    images, target = rows(batches["train"], "input"), rows(batches["train"], "target")
    assert images.shape == (16, 3, 4, 4)
    greys = (images * 255).round()
    assert torch.equal(greys[:, 0, 0, 0] >= 100, target == 1)


YAML = """
data:
  class_path: leyden.data.Digits
  init_args:
    num_train: 40
    batch_size: 20
    augment:
      class_path: leyden.data.TwoViews
      init_args:
        weak: leyden.data.HorizontalFlip
        strong:
          class_path: leyden.data.Compose
          init_args:
            augments:
              - class_path: leyden.data.RandomCrop
                init_args: {padding: 1}
              - class_path: leyden.data.RandomAffine
                init_args: {degrees: 10, scale: [0.9, 1.1]}
"""


def test_yaml_names_sources_and_augmentations():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data = parser.instantiate(parser.parse_string(YAML)).data
    assert isinstance(data, Digits)
    assert data.num_samples == 40
    assert data.augment.views["input_strong"].augments[1].scale == (0.9, 1.1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CSVTable", ["path", "target", "task", "split_seed", "batch_size", "augment"]),
        ("PydocTopics", ["context", "tokenizer", "stride", "batch_size", "seed"]),
        ("TextFile", ["path", "context", "val_fraction", "num_workers"]),
        ("MNISTFiles", ["root", "mean", "augment"]),
        ("CIFAR", ["root", "num_classes", "augment"]),
        ("ImageFolder", ["root", "image_size", "order"]),
        ("HuggingFaceDataset", ["path", "input_column", "target_column", "splits", "batch_size"]),
        ("HuggingFaceText", ["path", "target_column", "tokenizer", "max_length", "batch_size"]),
    ],
)
def test_the_command_line_knows_the_arguments(name, arguments):
    import leyden.data

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(leyden.data, name), "data")
    known = {action.dest.removeprefix("data.") for action in parser._actions}
    assert set(arguments) <= known
    assert "source" not in known
