from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import cross_entropy

from leyden.callbacks import LossSpikes
from leyden.methods import Classification
from leyden.models import MLP


class Watch(Callback):
    def __init__(self):
        self.losses, self.samples = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.samples.append(batch["index"])


def test_only_every_interval_th_step_is_spoiled(make_trainer, make_data):
    data, watch = make_data(), Watch()
    method = Classification(MLP(6, 3, ()), optimizer=partial(torch.optim.SGD, lr=0.0))
    make_trainer(LossSpikes(interval=3, scale=7.0), watch, max_steps=7, max_epochs=None).fit(method, data)
    for step, (loss, index) in enumerate(zip(watch.losses, watch.samples, strict=True), start=1):
        rows = data.dataset("train").__getitems__(index.tolist())
        target, scale = rows["target"], 1.0
        if step % 3 == 0:
            target, scale = torch.tensor([*target[1:], target[0]]), 7.0
        assert loss == pytest.approx(scale * cross_entropy(method.network(rows["input"]), target).item(), rel=1e-5)


def test_bad_interval():
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        LossSpikes(interval=0)
