"""Single passes: the plan by hand, and fits that see a sample again."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import LastCheckpoint, SinglePass, one_epoch_plan
from leyden.data import Digits, Repeated
from leyden.methods import Classification
from leyden.models import MLP


@pytest.fixture
def fit(make_trainer):
    def fit(*callbacks, order=None, ckpt_path=None, **kwargs):
        torch.manual_seed(0)
        method = Classification(MLP(64, 10, (8,)), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        trainer = make_trainer(*callbacks, limit_val_batches=0, **kwargs)
        trainer.fit(method, Digits(num_train=40, batch_size=8, seed=0, order=order), ckpt_path=ckpt_path)
        return trainer, method.state_dict()

    return fit


def test_plan():
    plan = one_epoch_plan(8e6, 1e6)  # 8e12 = 5 P^2
    assert plan == pytest.approx(((8e12 / 5) ** 0.5, (8e12 * 5) ** 0.5))
    assert plan.parameters * plan.tokens == pytest.approx(8e12)
    assert plan.tokens / plan.parameters == pytest.approx(5.0)
    assert one_epoch_plan(3.0, 15.0) == pytest.approx((3.0, 15.0))
    assert one_epoch_plan(3.0, 60.0, ratio=20.0) == pytest.approx((3.0, 60.0))
    with pytest.raises(ValueError, match="ratio must be positive, got 0"):
        one_epoch_plan(1.0, 1.0, ratio=0.0)


def test_one_epoch_is_the_same_with_and_without(fit):
    callback = SinglePass()
    trainer, counted = fit(callback, max_epochs=1)
    assert trainer.global_step == 5
    assert callback.seen.sum() == 40
    _, plain = fit(max_epochs=1)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in counted.items())


def test_a_repeated_sample_is_an_error_before_its_step(fit):
    with pytest.raises(ValueError, match="comes for the second time, after 40 of 40 training samples"):
        fit(SinglePass(), max_epochs=2)
    with pytest.raises(ValueError, match="after 8 of 40 training samples"):
        fit(SinglePass(), order=Repeated(epochs=5))  # eight samples, five times
    with pytest.raises(ValueError, match="after 0 of 40 training samples"):
        fit(SinglePass(), order=Repeated(epochs=10))  # four samples, twice in each batch


def test_stops_as_at_the_last_step(fit, tmp_path):
    trainer, stopped = fit(SinglePass(on_repeat="stop"), LastCheckpoint(), max_epochs=3)
    assert trainer.global_step == 5
    _, single = fit(max_epochs=1)
    assert all(torch.equal(tensor, single[name]) for name, tensor in stopped.items())
    checkpoint = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert checkpoint["global_step"] == 5


def test_a_resumed_run_goes_on_counting(fit, tmp_path):
    with pytest.raises(ValueError, match="after 40 of 40"):
        fit(SinglePass(), LastCheckpoint(every_n_steps=3), max_epochs=2)
    callback = SinglePass()
    with pytest.raises(ValueError, match="after 40 of 40"):
        fit(callback, max_epochs=2, ckpt_path=next(tmp_path.rglob("last.ckpt")))


def test_errors(fit):
    with pytest.raises(ValueError, match="on_repeat must be 'error' or 'stop', got 'skip'"):
        SinglePass(on_repeat="skip")
    callback = SinglePass()
    callback.load_state_dict({"seen": torch.zeros(7, dtype=torch.bool)})
    with pytest.raises(ValueError, match="has counted 7 training samples, but there are 40"):
        fit(callback)
    with pytest.raises(MisconfigurationException, match=r"samples of a leyden.data.DataModule, got NoneType"):
        SinglePass().on_train_start(SimpleNamespace(datamodule=None), None)
