import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import PostHocCalibration
from leyden.core import sample_keys
from leyden.data import GaussianNoise
from leyden.losses import correctness_aware_loss
from leyden.methods import Classification
from leyden.models import MLP


class Shifted(GaussianNoise):
    """Needs no image."""

    def __call__(self, batch, keys):
        return batch | {"input": batch["input"] + 0.1 * (1 + keys[:, None] % 2)}


def calibrated(make_trainer, make_data, method, **arguments):
    """A test; returns the callback, the logits of the test in order, and the metrics."""
    callback = PostHocCalibration([Shifted(0.1)], lr=1e-2, epochs=50, **arguments)
    trainer = make_trainer(callback)
    data = make_data()
    metrics = trainer.test(method, datamodule=data, verbose=False)[0]
    outputs = torch.cat([batch["output"] for batch in trainer.predict(method, datamodule=data)])
    return callback, outputs, metrics


@pytest.fixture
def method():
    torch.manual_seed(0)
    return Classification(MLP(6, 3, (8,)))


def test_confidence_changes_and_predictions_stay(make_trainer, make_data, method):
    plain = make_trainer()
    before = plain.test(method, datamodule=make_data(), verbose=False)[0]
    expected = torch.cat([batch["output"] for batch in plain.predict(method, datamodule=make_data())])
    callback, outputs, metrics = calibrated(make_trainer, make_data, method)
    assert metrics["test/accuracy"] == before["test/accuracy"]
    assert metrics["test/loss"] != before["test/loss"]
    assert torch.equal(outputs.argmax(-1), expected.argmax(-1))
    # by hand, from the calibrator that was fitted
    batch = make_data().dataset("predict").tensors
    shifted = batch["input"] + 0.1 * (1 + sample_keys(3, 0, torch.arange(9))[:, None] % 2)
    logits = method.network(batch["input"])
    top = logits.argsort(-1, descending=True)
    features = method.network(shifted).softmax(-1).gather(-1, top)
    torch.testing.assert_close(outputs, callback.calibrator(logits, features).detach())
    assert "compute" not in vars(method)  # it is as it was


def test_the_loss_on_validation_data_falls(make_trainer, make_data, method):
    callback, _, _ = calibrated(make_trainer, make_data, method)
    batch = make_data().dataset("val").tensors
    shifted = batch["input"] + 0.1 * (1 + sample_keys(3, 0, torch.arange(11))[:, None] % 2)
    logits = method.network(batch["input"]).detach()
    features = method.network(shifted).softmax(-1).gather(-1, logits.argsort(-1, descending=True)).detach()
    after = correctness_aware_loss(callback.calibrator(logits, features), logits, batch["target"])
    assert after < correctness_aware_loss(logits, logits, batch["target"])


def test_it_is_fitted_alike_each_time_and_leaves_the_generator(make_trainer, make_data, method):
    state = torch.get_rng_state()
    first = calibrated(make_trainer, make_data, method)[1]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(calibrated(make_trainer, make_data, method)[1], first)
    assert not torch.equal(calibrated(make_trainer, make_data, method, balanced=False)[1], first)


class Plain(LightningDataModule):
    def test_dataloader(self):
        return [{"input": torch.zeros(2, 6), "target": torch.zeros(2, dtype=torch.int64)}]


def test_bad_input(make_trainer, method):
    with pytest.raises(ValueError, match="views must be one or more augmentations, got none"):
        PostHocCalibration([])
    for name in ("k", "hidden", "epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            PostHocCalibration([Shifted(0.1)], **{name: 0})
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        PostHocCalibration([Shifted(0.1)], lr=0.0)
    with pytest.raises(MisconfigurationException, match=r"validation data of a leyden.data.DataModule, got Plain"):
        make_trainer(PostHocCalibration([Shifted(0.1)])).test(method, datamodule=Plain(), verbose=False)
