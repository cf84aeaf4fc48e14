import multiprocessing
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.data import Augment, DataModule, Order, Sequential, TensorDictDataset
from leyden.methods import Classification
from leyden.models import MLP


def tensors(num_samples, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, 6, generator=generator)
    return TensorDictDataset({"input": x, "target": x.argmax(1) % 3})


class Data(DataModule):
    num_classes = 3

    def __init__(self, *args, splits=("train", "val", "test"), seed=0, **kwargs):
        super().__init__(*args, seed=seed, **kwargs)
        self.splits = splits
        self.made = 0

    def datasets(self):
        self.made += 1
        sizes = {"train": 48, "val": 11, "test": 9, "predict": 5}
        return {split: tensors(sizes[split], seed) for seed, split in enumerate(self.splits)}


class Diary(Callback):
    """Notes what happens and changes the batch size at given (epoch, batch)."""

    def __init__(self, resizes=None):
        self.resizes = {at: new if isinstance(new, tuple) else (new,) for at, new in (resizes or {}).items()}
        self.steps, self.validations, self.batches, self.lengths = [0], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.steps[-1] = trainer.global_step
        if (trainer.current_epoch, batch_idx) in self.resizes:
            trainer.datamodule.set_batch_size(*self.resizes[trainer.current_epoch, batch_idx])
        self.lengths.append(trainer.num_training_batches)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.steps.append(0)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


def make_trainer(*callbacks, **kwargs):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "callbacks": list(callbacks),
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **kwargs,
        }
    )


def make_method():
    torch.manual_seed(1)
    return Classification(MLP(6, 3, (8,)), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))


def fit(data, *callbacks, **kwargs):
    method = make_method()
    make_trainer(*callbacks, **kwargs).fit(method, datamodule=data)
    return method


@pytest.mark.parametrize(
    ("resizes", "steps"),
    [
        ({}, [6, 12, 18]),
        ({(0, 1): 16}, [4, 7, 10]),
        ({(0, 1): 4}, [10, 22, 34]),
        ({(2, 1): 16}, [6, 12, 16]),
        ({(2, 1): 4}, [6, 12, 22]),
        ({(0, 1): 48}, [2, 3, 4]),  # nothing is left of the epoch
        ({(0, 5): 16}, [6, 9, 12]),  # after the last batch
        ({(0, 1): 24, (1, 0): 12, (2, 1): 6}, [3, 6, 12]),
    ],
)
def test_resized_epochs_have_the_right_steps_and_a_validation_at_their_end(resizes, steps):
    diary = Diary(resizes)
    fit(Data(8), diary)
    assert diary.steps == steps
    assert diary.validations == steps


@pytest.mark.parametrize("at", [2, 3])  # within a step, after it
@pytest.mark.parametrize(("new_size", "steps"), [(16, [4, 7, 10]), (4, [10, 22, 34])])
def test_resize_with_accumulation(at, new_size, steps):
    diary = Diary({(0, at): new_size})
    fit(Data(8), diary, accumulate_grad_batches=2)
    sizes = [len(batch["index"]) for batch in diary.batches]
    assert sizes == [4] * 4 + [new_size // 2] * (len(sizes) - 4)
    assert diary.steps == steps
    assert diary.validations == steps


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize(("resize", "steps"), [((16, 2), [4, 7, 10]), ((8, 4), [6, 12, 18]), ((16, 1), [4, 7, 10])])
def test_accumulation_changes_in_an_epoch(before, resize, steps):
    at = 2 * before - 1  # the last batch of the second step
    same, other = Diary({(0, 1): resize[0]}), Diary({(0, at): resize})
    expected = fit(Data(8), same).state_dict()
    got = fit(Data(8), other, accumulate_grad_batches=before).state_dict()
    assert other.steps == other.validations == same.steps == steps
    assert [len(batch["index"]) for batch in other.batches[at + 1 :]] == [resize[0] // resize[1]] * (
        len(other.batches) - at - 1
    )
    assert [i for batch in other.batches for i in batch["index"]] == [
        i for batch in same.batches for i in batch["index"]
    ]
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("limit", "steps"), [(5, [5, 10]), (0.5, [3, 7])])
def test_resize_under_a_limit_of_batches(limit, steps):
    diary = Diary({(0, 0): 6})
    fit(Data(8), diary, max_epochs=2, limit_train_batches=limit)
    assert diary.steps == steps
    assert diary.validations == steps


def test_no_sample_comes_twice_in_a_resized_epoch():
    diary = Diary({(0, 1): 16})
    fit(Data(8), diary, max_epochs=1)
    assert torch.cat([batch["index"] for batch in diary.batches]).sort().values.tolist() == list(range(48))
    assert diary.lengths == [6, 4, 4, 4]


def test_the_workers_end_with_the_fit():
    before = multiprocessing.active_children()
    diary, alone = Diary({(0, 1): 16}), Diary({(0, 1): 16})
    fit(Data(8), alone, max_epochs=1)
    fit(Data(8, num_workers=1), diary, max_epochs=1)
    assert [b["index"].tolist() for b in diary.batches] == [b["index"].tolist() for b in alone.batches]
    left = [process for process in multiprocessing.active_children() if process not in before]
    for process in left:  # or they would stop the garbage collector for 5 s each
        process.kill()
        process.join()
    assert not left


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_same_weights(accumulate):
    whole, pieces = Diary(), Diary()
    expected = fit(Data(8), whole).state_dict()
    got = fit(Data(8), pieces, accumulate_grad_batches=accumulate).state_dict()
    assert whole.steps == pieces.steps == [6, 12, 18]
    index = [torch.cat([b["index"] for b in diary.batches]).tolist() for diary in (whole, pieces)]
    assert index[0] == index[1]
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


class Plus100(Augment):
    def __init__(self):
        self.keys = []

    def __call__(self, batch, keys):
        self.keys.append(keys)
        return {**batch, "input": batch["input"] + 100.0}


def test_only_training_batches_are_augmented():
    class Inputs(Classification):
        seen = []

        def compute(self, batch):
            phase = "train" if self.training else "eval"
            self.seen.append((phase, batch["input"].mean().item() > 50))
            return super().compute(batch)

    augment = Plus100()
    data = Data(8, augment=augment)
    method = Inputs(MLP(6, 3, (4,)), optimizer=partial(torch.optim.SGD, lr=1e-6))
    trainer = make_trainer(max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(method, datamodule=data)
    trainer.validate(method, datamodule=data, verbose=False)
    trainer.test(method, datamodule=data, verbose=False)
    trainer.predict(method, datamodule=data)
    assert set(method.seen) == {("train", True), ("eval", False)}
    assert len(augment.keys) == 12
    # a sample's key changes from step to step
    assert len(torch.cat(augment.keys).unique()) == 96


def test_a_missing_split_is_named():
    train_only, val_only = Data(8, splits=("train",)), Data(8, splits=("val",))
    with pytest.raises(MisconfigurationException, match=r"Data has no 'train' data, only \['val'\]"):
        fit(val_only)
    with pytest.raises(MisconfigurationException, match=r"Data has no 'test' data, only \['train'\]"):
        make_trainer().test(make_method(), datamodule=train_only)
    with pytest.raises(MisconfigurationException, match=r"Data has no 'val' data, only \['train'\]"):
        make_trainer().validate(make_method(), datamodule=train_only)
    with pytest.raises(MisconfigurationException, match=r"Data has no 'test' data, only \['train'\]"):
        make_trainer().predict(make_method(), datamodule=train_only)


def test_fit_needs_no_validation_data():
    data, diary = Data(8, splits=("train",)), Diary()
    assert data.val_dataloader() == []
    fit(data, diary, limit_val_batches=0)
    assert diary.steps == [6, 12, 18]
    assert diary.validations == []


def test_validation_needs_no_training_data():
    make_trainer().validate(make_method(), datamodule=Data(8, splits=("val",)), verbose=False)


@pytest.mark.parametrize(("splits", "length"), [(("test",), 9), (("test", "predict"), 5)])
def test_prediction_reads_predict_or_else_test(splits, length):
    outputs = make_trainer().predict(make_method(), datamodule=Data(4, splits=splits))
    assert torch.cat([output["index"] for output in outputs]).tolist() == list(range(length))


def test_data_sets_are_made_once():
    data = Data(8)
    fit(data)
    make_trainer().test(make_method(), datamodule=data, verbose=False)
    assert data.made == 1
    assert data.num_samples == 48


def test_evaluation_sees_every_sample_once():
    class Count(Callback):
        def __init__(self):
            self.index = []

        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            self.index.append(batch["index"])

    count = Count()
    make_trainer(count).validate(make_method(), datamodule=Data(48, eval_batch_size=4), verbose=False)
    assert torch.cat(count.index).tolist() == list(range(11))
    assert max(map(len, count.index)) <= 4


def test_arguments_reach_the_sampler():
    diary, other_seed, same_seed = Diary(), Diary(), Diary()
    fit(Data(20, order=Sequential(), drop_last=False), diary, max_epochs=1)
    assert [len(batch["index"]) for batch in diary.batches] == [20, 20, 8]
    assert torch.cat([batch["index"] for batch in diary.batches]).tolist() == list(range(48))
    fit(Data(48, seed=5), other_seed, max_epochs=1)
    fit(Data(48, seed=5), same_seed, max_epochs=1)
    assert torch.equal(other_seed.batches[0]["index"], same_seed.batches[0]["index"])


def test_the_seed_is_that_of_seed_everything(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert Data(seed=None).seed == 11
    assert Data(seed=3).seed == 3
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert Data(seed=None).seed == 0


def test_set_batch_size_outside_of_a_fit():
    with pytest.raises(MisconfigurationException, match="set_batch_size can only be called during a fit"):
        Data(8).set_batch_size(16)


def test_a_bad_new_size_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.48"):
        fit(Data(8), Diary({(0, 0): 49}))


def test_a_bad_size_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="batch_size=9 cannot be shared equally by 1 processes x 2 accumulated"):
        fit(Data(9), accumulate_grad_batches=2)


def test_a_foreign_module_can_use_the_data():
    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 3)
            self.seen = 0

        def training_step(self, batch, batch_idx):
            self.seen += len(batch["index"])
            return torch.nn.functional.cross_entropy(self.layer(batch["input"]), batch["target"])

        def validation_step(self, batch, batch_idx):
            self.seen -= len(batch["index"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Foreign()
    make_trainer(max_epochs=2).fit(module, datamodule=Data(8))
    assert module.seen == 2 * (48 - 11)


def test_an_order_may_change_its_length_with_the_epoch():
    class Growing(Order):
        def __call__(self, num_samples, epoch, generator):
            return torch.arange(16 * (epoch + 1))

    diary = Diary()
    fit(Data(8, order=Growing()), diary)
    assert diary.steps == [2, 6, 12]
    assert diary.validations == [2, 6, 12]


def test_all_batches_are_the_samples_as_they_lie():
    data = Data(batch_size=8, eval_batch_size=4)
    batches = list(data.all_batches("val"))
    assert [len(batch["index"]) for batch in batches] == [3, 4, 4]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(11))
    assert torch.equal(torch.cat([batch["input"] for batch in batches]), data.dataset("val").tensors["input"])
    assert len(Data(eval_batch_size=64).all_batches("val")) == 1
