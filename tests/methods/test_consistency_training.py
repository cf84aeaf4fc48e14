import copy
import csv
import json

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import InitialWeights
from leyden.cli import main
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.losses import karras_sigmas
from leyden.methods import ConsistencyTraining
from leyden.models import UNet

BATCH = {"input": torch.rand(6, 1, 8, 8), "index": torch.arange(6)}


class Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, x, time):
        return self.scale * x


def fit(method, *callbacks, steps=8, **options):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(method, Digits(batch_size=8, num_train=32, seed=0))
    return trainer


class Recorder(MethodCallback):
    """Notes what each step saw."""

    def __init__(self):
        self.numbers, self.networks = [], []

    def on_train_start(self, trainer, pl_module):
        self.networks.append(copy.deepcopy(pl_module.network))

    def loss_terms(self, method, batch, outputs, terms):
        self.numbers.append(len(method._grid[0]))
        return terms

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == len(self.networks):
            self.networks.append(copy.deepcopy(pl_module.network))


def test_loss_of_a_network_that_does_nothing():
    # then f = c_skip x, whose loss can be computed from the sigmas that were drawn
    method = ConsistencyTraining(Identity(), s0=3, s1=3)
    sigmas = karras_sigmas(4).float()
    keys = method._keys(BATCH["index"], step=0)
    low, high = method._draw_sigmas(keys, BATCH["input"])
    places = torch.searchsorted(sigmas, low)
    assert torch.equal(sigmas[places], low)
    assert torch.equal(sigmas[places + 1], high)
    outputs = method.compute(BATCH)
    x = BATCH["input"].double()

    def skip(sigma):
        return (0.25 / ((sigma.double() - 0.002) ** 2 + 0.25)).view(-1, 1, 1, 1)

    # the noise, from what the network gave back
    noise = (outputs.logits.detach().double() / skip(high) - x) / high.double().view(-1, 1, 1, 1)
    assert noise.mean().abs() < 0.25
    assert 0.8 < noise.std() < 1.2
    distance = (outputs.logits.detach() - skip(low) * (x + low.view(-1, 1, 1, 1) * noise)).flatten(1).norm(dim=1)
    c = 0.00054 * 8.0
    expected = ((distance**2 + c**2).sqrt() - c) / (high - low)
    assert method.loss_terms(BATCH, outputs)["task"].item() == pytest.approx(expected.mean().item(), rel=1e-3)


def test_draws_sigmas_by_their_probabilities():
    method = ConsistencyTraining(Identity(), s0=4, s1=4)
    low, _ = method._draw_sigmas(method._keys(torch.arange(20_000), step=3), BATCH["input"])
    edges = karras_sigmas(5).log()
    shares = torch.special.ndtr((edges + 1.1) / 2.0).diff()
    found = torch.stack([(low == edge).double().mean() for edge in karras_sigmas(5)[:-1].float()])
    torch.testing.assert_close(found, shares / shares.sum(), atol=0.01, rtol=0.0)


@pytest.mark.parametrize(("improved", "numbers"), [(True, [3, 3, 5, 5, 9, 9]), (False, [2, 5, 6, 7, 8, 9])])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_curriculum_follows_optimizer_steps(improved, numbers, accumulate):
    recorder = Recorder()
    method = ConsistencyTraining(Identity(), improved=improved, s0=2, s1=8, num_pictures=0)
    fit(method, recorder, steps=6, accumulate_grad_batches=accumulate)
    assert recorder.numbers == [number for number in numbers for _ in range(accumulate)]


def test_teacher_of_plain_training_is_an_average():
    recorder = Recorder()
    method = ConsistencyTraining(UNet(width=4), improved=False, s0=2, s1=8, num_pictures=0)
    fit(method, recorder, steps=6, accumulate_grad_batches=2)
    average = [p.clone() for p in recorder.networks[0].parameters()]
    for number, network in zip([2, 5, 6, 7, 8, 9], recorder.networks[1:], strict=True):
        decay = 0.95 ** (2 / (number - 1))
        average = [decay * a + (1 - decay) * p for a, p in zip(average, network.parameters(), strict=True)]
    for a, p in zip(average, method.frozen["teacher"].module.parameters(), strict=True):
        torch.testing.assert_close(p, a)
    assert "teacher" not in ConsistencyTraining(UNet(width=4)).frozen


def test_teacher_begins_as_the_given_weights(tmp_path):
    from leyden.weights import pack_weights

    method = ConsistencyTraining(Identity(), improved=False, num_pictures=0)
    state = {"network.scale": torch.tensor(0.7)}
    (tmp_path / "weights.safetensors").write_bytes(pack_weights(state))
    fit(method, InitialWeights(str(tmp_path / "weights.safetensors")), steps=0)
    assert method.frozen["teacher"].module.network.scale.item() == pytest.approx(0.7)


def test_evaluation_is_the_same_every_time_and_predicts_samples():
    method = ConsistencyTraining(Identity()).eval()
    first, second = (method.loss_terms(BATCH, method.compute(BATCH))["task"] for _ in range(2))
    assert torch.equal(first, second)
    whole = method.predict_step(BATCH, 0)["output"]
    part = method.predict_step({key: value[2:4] for key, value in BATCH.items()}, 0)["output"]
    assert torch.equal(part, whole[2:4])
    noise = torch.randn(2, 1, 8, 8)
    expected = 80.0 * noise * 0.25 / (79.998**2 + 0.25)
    torch.testing.assert_close(method(noise), expected)


def test_fit_has_an_end_and_batches_have_numbers():
    with pytest.raises(MisconfigurationException, match="set trainer.max_epochs or trainer.max_steps"):
        fit(ConsistencyTraining(Identity(), num_pictures=0), steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match="ConsistencyTraining needs the batch keys"):
        ConsistencyTraining(Identity()).compute({"input": BATCH["input"]})


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"second_sigma": 90.0}, "second_sigma"),
        ({"num_pictures": -1}, "num_pictures"),
        ({"sigma_max": 0.001, "second_sigma": 0.002}, "sigma_m"),
        ({"s0": 9, "s1": 3}, "at most s1"),
        ({"mu0": 1.5}, "mu0"),
    ],
)
def test_refuses(knobs, match):
    with pytest.raises(ValueError, match=match):
        ConsistencyTraining(Identity(), **knobs)


def test_pictures_reach_the_loggers_that_have_pictures(tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tensorboard = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}}
    arguments = [
        *("fit", "-c", "weights/ict", "--name=run", "-c", "trainer/cpu", "--trainer.max_epochs=1"),
        *("--trainer.limit_train_batches=2", "--trainer.callbacks.ProgressBar=null", "--model.network.width=4"),
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.log_every_n_steps=1",
        f"--trainer.logger+={json.dumps(tensorboard)}",
        "--debug",
    ]
    assert main(arguments) == 0
    run = tmp_path / "logs" / "weights" / "ict" / "run"
    images = reader.EventAccumulator(str(next(run.rglob("events.out.tfevents*")).parent))
    images.Reload()
    (image,) = images.Images("samples")
    assert (image.width, image.height) == (16 * 32, 2 * 32)
    assert list(run.rglob("media/images/samples*.png"))
    with open(run / "metrics.csv", newline="") as file:
        assert "samples" not in next(csv.reader(file))
