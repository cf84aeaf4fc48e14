from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from leyden.callbacks import Multigrid
from leyden.data import Digits, GaussianNoise, GlobalBatchSampler, TensorDictDataset, TwoViews
from leyden.methods import Classification
from leyden.models import ConvNet

# grids of 4 x 4 and of 8 x 8 pixels, and a short cycle of both; the schedule of 4 epochs has one, one and two of them
SMALL = {
    "shape": (1, 8),
    "milestones": [2],
    "base_epochs": 4,
    "long_factors": [(1, 0.5), (1, 1)],
    "short_factors": [0.5],
}


class Recorder(Callback):
    """Notes epoch, input shape and momentum of the network's batch norms in each step, and the learning rate."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer, pl_module):
        body = pl_module.network.body

        def note(module, args):
            if body.training:
                rate = trainer.optimizers[0].param_groups[0]["lr"]
                self.seen.append((trainer.current_epoch, tuple(args[0].shape), body[0][1].momentum, rate))

        self.handle = body.register_forward_pre_hook(note)

    def on_train_end(self, trainer, pl_module):
        self.handle.remove()


def method(**kwargs):
    torch.manual_seed(0)
    return Classification(ConvNet(width=2), optimizer=partial(torch.optim.SGD, lr=0.1), **kwargs)


def data(**kwargs):
    return Digits(**{"batch_size": 4, "num_train": 40, "seed": 0} | kwargs)


def test_sizes_grids_and_rates_of_a_fit(make_trainer):
    recorder, module = Recorder(), method()
    make_trainer(Multigrid(**SMALL), recorder, max_epochs=4).fit(module, data())
    coarse, fine = (16, 1, 4, 4), (4, 1, 8, 8)
    expected = [(0, coarse, 0.0, 0.4), (0, coarse, 0.1, 0.4)]  # 32 of 40 samples
    for epoch, rate in ((1, 0.1), (2, 0.1), (3, 0.01)):
        expected += [(epoch, coarse, 0.0, rate), (epoch, fine, 0.1, rate)] * 2
    assert [step[:3] for step in recorder.seen] == [step[:3] for step in expected]
    assert [step[3] for step in recorder.seen] == pytest.approx([step[3] for step in expected])
    assert module.network.body[0][1].momentum == 0.1


def test_the_schedule_fills_the_fit_and_a_second_fit_makes_its_own(make_trainer):
    multigrid, digits = Multigrid(**SMALL), data()
    for max_epochs, ends in ((4, [1, 2, 4]), (8, [3, 5, 8]), (1, [0, 1, 1]), (-1, [2, 3, 6])):
        make_trainer(multigrid, max_epochs=max_epochs, max_steps=1 if max_epochs < 0 else -1).fit(method(), digits)
        assert [phase.end_epoch for phase in multigrid.schedule.phases] == ends
    assert digits.sampler_class is GlobalBatchSampler  # again
    with pytest.raises(MisconfigurationException, match="Multigrid sets the learning rate"):
        make_trainer(multigrid).fit(method(scheduler=partial(StepLR, step_size=1)), digits)
    assert digits.sampler_class is GlobalBatchSampler


def test_running_statistics_are_those_of_the_long_cycle(make_trainer):
    module = method()
    frozen = Multigrid(**SMALL | {"long_factors": [(1, 1)], "short_factors": [0.5]})
    make_trainer(frozen, max_epochs=1, limit_train_batches=1).fit(module, data())
    norm = module.network.body[0][1]
    assert norm.num_batches_tracked == 1
    assert not norm.running_mean.any()  # the only step was on a coarse grid
    assert not torch.equal(norm.weight, torch.ones(2))


def test_all_views_are_resampled(make_trainer):
    seen = {}

    class Peek(Multigrid):
        def transform_batch(self, method, batch):
            batch = super().transform_batch(method, batch)
            seen.update({name: tuple(tensor.shape) for name, tensor in batch.items()})
            return batch

    views = TwoViews(GaussianNoise(0.0), second=GaussianNoise(0.1))
    make_trainer(Peek(**SMALL), max_epochs=4, max_steps=1).fit(method(), data(augment=views))
    assert seen["input"] == seen["input_2"] == (16, 1, 4, 4)
    assert seen["target"] == seen["index"] == (16,)


def test_the_finest_grid_alone_is_usual_training(make_trainer):
    usual, ours = method(), method()
    usual.optimizer = partial(torch.optim.SGD, lr=0.1 * 0.1)
    make_trainer(max_epochs=1).fit(usual, data())
    one_grid = Multigrid((1, 8), [1], 2, long_factors=[(1, 1)], short_factors=[])
    make_trainer(one_grid, max_epochs=1).fit(ours, data())
    assert one_grid.schedule.lr_milestones == [0, 0, 0]  # in so short a fit the rate is lowered at once
    for name, tensor in usual.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)


def test_what_cannot_be(make_trainer):
    with pytest.raises(ValueError, match=r"shape must be \(frames, side\)"):
        Multigrid(**SMALL | {"shape": (1, 0)})
    with pytest.raises(ValueError, match="must not be finer than the long cycle's, of side 2, but 0.9 of 8 is"):
        Multigrid(**SMALL | {"long_factors": [(1, 0.25)], "short_factors": [0.9]})
    with pytest.raises(MisconfigurationException, match="Multigrid sets the learning rate by its own schedule"):
        make_trainer(Multigrid(**SMALL)).fit(method(scheduler=partial(StepLR, step_size=1)), data())
    with pytest.raises(ValueError, match="larger than the 40 training samples"):
        make_trainer(Multigrid(**SMALL)).fit(method(), data(batch_size=16))
    with pytest.raises(ValueError, match=r"input must have 1 frames of 16 x 16 \(shape\), .*, got \(16, 1, 8, 8\)"):
        make_trainer(Multigrid(**SMALL | {"shape": (1, 16)})).fit(method(), data())
    loader = DataLoader(TensorDictDataset({"input": torch.zeros(4, 1, 8, 8), "target": torch.zeros(4).long()}))
    with pytest.raises(MisconfigurationException, match=r"of a leyden.data.DataModule, got NoneType"):
        make_trainer(Multigrid(**SMALL)).fit(method(), loader, loader)
