from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import DPSGD, HardBatchReplay
from leyden.core import Network
from leyden.data import DataModule, Digits, GlobalBatchSampler, Sequential, TensorDictDataset
from leyden.methods import Classification
from leyden.models import MLP

# A run of the authors' ``turbo_train`` (imjohnzakkam/DyBAT, run.py) on 24 samples in batches of 4, in float64, with
# SGD of rate 0.5 and momentum 0.9 from weights of 0, for 4 times as many steps as there are batches: the batches
# that it trained on, and the weight and the bias at the end.
REFERENCE = {
    0.4: (
        [0, 1, 2, 3, 4, 5, 1, 3, 0, 4, 0, 4, 0, 4, 2, 5, 1, 5, 1, 5, 1, 5, 1, 5],
        [
            [-1.004349377240173, -1.157616647555957],
            [-0.4354152537812866, 0.6487106709174408],
            [1.4397646310214598, 0.5089059766385163],
        ],
        [0.4334085181010584, -1.1377963842811774, 0.7043878661801187],
    ),
    0.5: (
        [0, 1, 2, 3, 4, 5, 1, 3, 4, 0, 2, 4, 0, 2, 4, 0, 1, 5, 1, 3, 5, 1, 3, 5],
        [
            [-1.3996071547470437, -1.6198464260036671],
            [0.4086536311238843, 0.9981353384539788],
            [0.9909535236231597, 0.6217110875496885],
        ],
        [0.24217695188878113, -1.028751769074239, 0.786574817185457],
    ),
}


class Linear(Network):
    def __init__(self):
        super().__init__()
        self.feature_dim = 2
        self.head = torch.nn.Linear(2, 3)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def features(self, x):
        return x


class TwentyFour(DataModule):
    """The samples of the reference, placed so that the shuffled first epoch has them in its order."""

    num_classes = 3

    def datasets(self):
        place = GlobalBatchSampler(24, 4, seed=self.seed)._epoch_indices()
        x, target = torch.empty(24, 2, dtype=torch.float64), torch.empty(24, dtype=torch.int64)
        x[place] = torch.cos(torch.arange(48, dtype=torch.float64)).view(24, 2)
        target[place] = (torch.arange(24) * 5 % 7) % 3
        return {"train": TensorDictDataset({"input": x, "target": target})}


class Recorder(Callback):
    def __init__(self):
        self.indices = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.indices.append(batch["index"].tolist())


class Values(DummyLogger):
    def __init__(self):
        super().__init__()
        self.replayed = []

    def log_metrics(self, metrics, step=None):
        self.replayed += [metrics["train/replayed"]] if "train/replayed" in metrics else []


@pytest.mark.parametrize("delta", REFERENCE)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_trains_as_the_authors_code(delta, accumulate, make_trainer):
    numbers, weight, bias = REFERENCE[delta]
    method = Classification(Linear(), optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9))
    recorder, values, data = Recorder(), Values(), TwentyFour(batch_size=4, seed=3)
    trainer = make_trainer(
        HardBatchReplay(delta),
        recorder,
        logger=values,
        max_steps=24,
        max_epochs=30,
        precision="64-true",
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
    )
    trainer.fit(method, data)
    steps = torch.tensor(recorder.indices).view(24, 4).tolist()
    assert [steps[:6].index(step) for step in steps] == numbers
    torch.testing.assert_close(method.network.head.weight.tolist(), weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(method.network.head.bias.tolist(), bias, rtol=1e-9, atol=1e-9)
    assert values.replayed[:3] == [0.0, int(6 * delta), int(6 * delta)]


def test_a_second_fit_starts_anew(make_trainer):
    replay, data, recorders = HardBatchReplay(0.4), Digits(num_train=80, batch_size=8, seed=0), [Recorder(), Recorder()]
    for recorder in recorders:
        torch.manual_seed(0)
        method = Classification(MLP(64, 10, (8,)), optimizer=partial(torch.optim.SGD, lr=0.5))
        make_trainer(replay, recorder, limit_val_batches=0).fit(method, data)
        assert data.order is None
    assert len(recorders[0].indices) == 10 + 2 * 4
    assert recorders[0].indices == recorders[1].indices


def test_what_cannot_be(make_trainer):
    def fit(*callbacks, module=None, **kwargs):
        module = module or Classification(MLP(64, 10, (8,)), optimizer=partial(torch.optim.SGD, lr=0.1))
        data = Digits(**{"num_train": 80, "batch_size": 8, "seed": 0} | kwargs)
        make_trainer(*callbacks, limit_val_batches=0).fit(module, data)

    class Grows(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.datamodule.set_batch_size(16)

    class NoLoss(BoringModel):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return None

    private = DPSGD(target_epsilon=8.0, target_delta=1e-3)
    for message, callbacks, kwargs in (
        ("has an order already .Sequential.", [HardBatchReplay()], {"order": Sequential()}),
        ("has an order already .HardBatches.", [HardBatchReplay(), HardBatchReplay()], {}),
        ("Poisson sampling draws them in each step", [private, HardBatchReplay()], {}),
        ("but PoissonBatchSampler makes others", [HardBatchReplay(), private], {}),
        ("samples again, but their size was set to 16", [Grows(), HardBatchReplay()], {}),
        ("set data.drop_last to true", [HardBatchReplay()], {"batch_size": 12, "drop_last": False}),
        ("NoLoss returns none from its training_step", [HardBatchReplay()], {"module": NoLoss()}),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            fit(*callbacks, **kwargs)
    with pytest.raises(MisconfigurationException, match="orders the samples of a leyden.data.DataModule, got NoneType"):
        make_trainer(HardBatchReplay()).fit(BoringModel())
    with pytest.raises(ValueError, match="delta must lie in"):
        HardBatchReplay(0.0)
