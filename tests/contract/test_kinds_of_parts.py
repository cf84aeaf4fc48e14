"""One small part of each kind, as a user would write it: each trains, dies three times and ends in the same bits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional

from leyden.callbacks import EMA, ExactResume, LastCheckpoint, mix_batch
from leyden.core import (
    Method,
    MethodCallback,
    Outputs,
    SampleMemory,
    accumulate_gradients,
    gradients_per_term,
    replace_modules,
    sample_keys,
    uniform,
)
from leyden.data import Digits, Order
from leyden.methods import Classification
from leyden.models import MLP
from leyden.nn import EMATeacher

# ---- (a) a regularizer with memory per sample


class EarlyLearning(MethodCallback):
    """Holds predictions near their own running mean (ELR)."""

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.memory = SampleMemory(trainer.datamodule.num_samples, trainer.datamodule.num_classes)

    def loss_terms(self, method, batch, outputs, terms):
        probabilities = outputs.logits.softmax(-1).clamp(1e-4, 1.0 - 1e-4)  # [N, C]
        target = self.memory.read(batch["index"])[0].lerp(probabilities.detach(), 0.3)
        self.memory.write(batch["index"], target)
        return terms | {"early": 3.0 * (1.0 - (target * probabilities).sum(-1)).log().mean()}

    def state_dict(self):
        return self.memory.state_dict()

    def load_state_dict(self, state):
        self.memory.load_state_dict(state)


# ---- (b) a teacher that is an average


class MeanTeacher(MethodCallback):
    """Pulls predictions towards those of an average of the network."""

    teacher = None

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.teacher = self.teacher or EMATeacher(pl_module.network, decay=0.9)
        pl_module.attach_frozen("mean_teacher", self.teacher, save=True)

    def loss_terms(self, method, batch, outputs, terms):
        teacher = self.teacher(batch["input"]).softmax(-1)
        return terms | {"consistency": functional.mse_loss(outputs.logits.softmax(-1), teacher)}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.teacher.update(pl_module.network, trainer.global_step)


# ---- (c) an optimizer that needs whole matrices


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices, plain momentum for the rest."""

    def __init__(self, params, lr=0.02, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(p.grad)
                p.sub_(newton_schulz(momentum) if p.ndim == 2 else momentum, alpha=group["lr"])
        return loss


def newton_schulz(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


# ---- (d) an order that follows the losses, and a batch that shrinks


class HardFirst(MethodCallback, Order):
    """The samples with the largest losses of the epoch before come first."""

    pure = False

    def build(self, method):
        self.losses = SampleMemory(method.datamodule.num_samples)
        method.datamodule.order = self

    def __call__(self, num_samples, epoch, generator):
        shuffled = torch.randperm(num_samples, generator=generator)
        return shuffled[self.losses.values[shuffled].argsort(descending=True, stable=True)]

    def loss_terms(self, method, batch, outputs, terms):
        losses = functional.cross_entropy(outputs.logits, batch["target"], reduction="none")
        self.losses.write(batch["index"], losses)
        return terms

    def state_dict(self):
        return self.losses.state_dict()

    def load_state_dict(self, state):
        self.losses.load_state_dict(state)


class HalveBatch(Callback):
    """Halves the batch in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 7:
            trainer.datamodule.set_batch_size(10)


# ---- (e) surgery


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.1 * torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class LoRA(MethodCallback):
    """Freezes linear layers and puts a low-rank part beside each."""

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module.network.head, LoRALinear):
            replace_modules(pl_module.network, lambda name, module: type(module) is nn.Linear, LoRALinear)


# ---- (f) a callback with trainable parts


class Projection(MethodCallback):
    """Reads the class from the features a second time, through a head of its own."""

    head = None

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.head = self.head or nn.Linear(pl_module.network.feature_dim, 10)
        pl_module.attach("projection", self.head, lr_scale=0.1)

    def loss_terms(self, method, batch, outputs, terms):
        return terms | {"projection": functional.cross_entropy(self.head(outputs.features), batch["target"])}


# ---- (g) two networks that alternate


class GAN(Method):
    """A generator of digits against a critic, with the logistic loss."""

    automatic_optimization = False

    def __init__(self, network, critic, **kwargs):
        super().__init__(network, **kwargs)
        self.critic = critic

    def configure_optimizers(self):
        return [self.optimizer(self.network.parameters()), self.optimizer(self.critic.parameters())]

    def compute(self, batch):
        return Outputs(logits=self.network(torch.randn(len(batch["input"]), 8)))

    def loss_terms(self, batch, outputs):
        return {"generator": functional.softplus(-self.critic(outputs.logits)).mean()}

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        outputs = self.compute(batch)
        fooled = functional.softplus(self.critic(outputs.logits.detach())).mean()
        caught = fooled + functional.softplus(-self.critic(batch["input"])).mean()
        critic.zero_grad()
        self.manual_backward(caught)
        critic.step()
        terms = self.loss_terms(batch, outputs)
        generator.zero_grad()
        self.manual_backward(terms["generator"])
        generator.step()
        self.sum_terms(terms | {"critic": caught}, num_samples=len(outputs.logits))


# ---- (h) gradient surgery


class PCGrad(Classification):
    """Takes out of each term's gradient what points against another's."""

    automatic_optimization = False

    def sum_terms(self, terms, *, num_samples):
        loss = super().sum_terms(terms, num_samples=num_samples)
        optimizer = self.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        flat = [torch.cat([g.flatten() for g in grads]) for grads in gradients_per_term(terms, parameters).values()]
        total = torch.zeros_like(flat[0])
        for i, mine in enumerate(flat):
            for other in flat[:i] + flat[i + 1 :]:
                mine = mine - (mine @ other).clamp(max=0.0) / other.square().sum() * other
            total += mine
        sizes = [p.numel() for p in parameters]
        optimizer.zero_grad()
        accumulate_gradients(parameters, [g.view_as(p) for g, p in zip(total.split(sizes), parameters, strict=True)])
        optimizer.step()
        return loss


class FeatureNorm(MethodCallback):
    """A second term."""

    def loss_terms(self, method, batch, outputs, terms):
        return terms | {"norm": 0.1 * outputs.features.square().mean()}


# ---- (i) mixing samples


class Mixup(MethodCallback):
    """Mixes each sample with another one of the batch."""

    def transform_batch(self, method, batch):
        keys = sample_keys(method.datamodule.seed, method.global_step, batch["index"])
        order = uniform(keys).argsort()  # of the samples, whatever their rows
        partner = torch.empty_like(order).scatter_(0, order, order.roll(1))
        lam = uniform(keys[order[:1]], stream=1).item()
        return mix_batch(batch, partner, lam, lam, num_classes=10)


# ---- (j) inner features


class TapNorm(MethodCallback):
    """Keeps an inner layer's outputs small."""

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        pl_module.taps.add("network.body.0")

    def loss_terms(self, method, batch, outputs, terms):
        return terms | {"tap": 0.01 * outputs.taps["network.body.0"].square().mean()}


# ---- the trial


def network() -> MLP:
    return MLP(64, 10, (16,), dropout=0.1)


def classification(method: type[Classification] = Classification, optimizer: Any = None) -> Classification:
    return method(network(), optimizer=optimizer or partial(torch.optim.AdamW, lr=0.01))


KINDS: dict[str, Callable[[], tuple[Method, list[Callback]]]] = {
    "sample_memory": lambda: (classification(), [EarlyLearning()]),
    "ema_teacher": lambda: (classification(), [MeanTeacher()]),
    "matrix_optimizer": lambda: (classification(optimizer=Muon), []),
    "sampler_policy": lambda: (classification(), [HardFirst(), HalveBatch()]),
    "surgery": lambda: (classification(), [LoRA()]),
    "trainable_parts": lambda: (classification(), [Projection()]),
    "two_networks": lambda: (GAN(MLP(8, 64, (16,)), MLP(64, 1, (16,))), []),
    "gradient_surgery": lambda: (classification(PCGrad), [FeatureNorm()]),
    "mixup": lambda: (classification(), [Mixup()]),
    "taps": lambda: (classification(), [TapNorm()]),
}
TERMS = {  # beside `task`
    "sample_memory": {"early"},
    "ema_teacher": {"consistency"},
    "trainable_parts": {"projection"},
    "two_networks": {"generator", "critic"},
    "gradient_surgery": {"norm"},
    "taps": {"tap"},
}


class Watch(Callback):
    """Dies before a batch, and notes what the trainer did."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop
        self.indices: list[Tensor] = []
        self.validations = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop._batches_that_stepped == self.stop:
            raise KeyError("killed")
        self.indices.append(batch["index"])

    def on_validation_end(self, trainer, pl_module):
        self.validations += 1


def prepare(
    parts: tuple[Method, list[Callback]], folder: Path, stop: int | None = None
) -> tuple[Trainer, dict[str, Any]]:
    method, callbacks = parts
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[ExactResume(), *callbacks, EMA(0.9), Watch(stop), LastCheckpoint(every_n_steps=2)],
    )
    return trainer, {"model": method, "datamodule": Digits(batch_size=20, eval_batch_size=180, num_train=100, seed=1)}


def fit(
    make: Callable[[], tuple[Method, list[Callback]]],
    folder: Path,
    *,
    seed: int = 0,
    stop: int | None = None,
    resume: bool = False,
) -> Trainer:
    torch.manual_seed(seed)
    trainer, run = prepare(make(), folder, stop)
    trainer.fit(**run, ckpt_path=folder / LAST if resume else None)
    return trainer


def fit_and_die(make: Callable[[], tuple[Method, list[Callback]]], folder: Path) -> Trainer:
    for number, stop in enumerate([3, 8, 11]):  # in the first epoch, in the second, in the third
        with pytest.raises(KeyError, match="killed"):
            fit(make, folder, seed=number, stop=stop, resume=number > 0)
    return fit(make, folder, seed=9, resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_dies_three_times_and_ends_in_the_same_bits(kind, tmp_path):
    whole = fit(KINDS[kind], tmp_path / "whole")
    cut = fit_and_die(KINDS[kind], tmp_path / "cut")
    assert_same(load(tmp_path / "whole"), load(tmp_path / "cut"))
    assert_same(whole.lightning_module.state_dict(), cut.lightning_module.state_dict())
    assert_same(whole.callback_metrics, cut.callback_metrics)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_is_tested_alike_from_memory_and_from_disk(kind, tmp_path):
    trainer = fit(KINDS[kind], tmp_path)
    logged = {name.removeprefix("train/").removesuffix("_epoch") for name in trainer.callback_metrics}
    assert logged - {"val/loss", "val/accuracy", "loss", "task"} == TERMS.get(kind, set())
    method, data = trainer.lightning_module, trainer.datamodule
    torch.manual_seed(3)
    [after_fit] = trainer.test(method, datamodule=data, verbose=False)
    again, run = prepare(KINDS[kind](), tmp_path)
    torch.manual_seed(3)
    [from_disk] = again.test(**run, ckpt_path=tmp_path / LAST, verbose=False)
    assert after_fit == from_disk


class Forgetful(EarlyLearning):
    """Saves nothing."""

    state_dict = MethodCallback.state_dict


def test_the_trial_finds_a_part_that_forgets(tmp_path):
    def make() -> tuple[Method, list[Callback]]:
        return classification(), [Forgetful()]

    fit(make, tmp_path / "whole")
    fit_and_die(make, tmp_path / "cut")
    with pytest.raises(AssertionError, match="network.body"):
        assert_same(load(tmp_path / "whole")["state_dict"], load(tmp_path / "cut")["state_dict"])


# ---- what each kind must do beside


def find(trainer: Trainer, kind: type) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))


def test_memory_has_seen_every_sample(tmp_path):
    memory = find(fit(KINDS["sample_memory"], tmp_path), EarlyLearning).memory
    assert memory.written.all()
    torch.testing.assert_close(memory.values.sum(-1), torch.full((100,), 1 - 0.7**3), rtol=0, atol=2e-3)


def test_teacher_is_saved_and_not_trained(tmp_path):
    trainer = fit(KINDS["ema_teacher"], tmp_path)
    method, teacher = trainer.lightning_module, find(trainer, MeanTeacher).teacher
    saved = load(tmp_path)["method"]["frozen"]["mean_teacher"]
    assert_same(saved, teacher.state_dict())
    assert not any("teacher" in name for name in method.state_dict())
    ours = {id(p) for p in teacher.parameters()}
    assert not ours & {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}


def test_matrices_move_by_orthogonal_steps():
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(3))
    matrix.grad, vector.grad = torch.randn(4, 6), torch.randn(3)
    Muon([matrix, vector], lr=1.0).step()
    singular = torch.linalg.svdvals(matrix.detach())
    assert singular.min() > 0.6  # the iteration maps them near 1, into 0.68..1.13
    assert singular.max() < 1.2
    assert torch.equal(vector.detach(), -vector.grad)


def test_the_batch_shrinks_and_every_epoch_is_whole(tmp_path):
    trainer = fit(KINDS["sampler_policy"], tmp_path)
    watch = find(trainer, Watch)
    assert [len(index) for index in watch.indices] == [20] * 7 + [10] * 6 + [10] * 10
    assert trainer.global_step == 23
    assert watch.validations == 3
    for epoch in (watch.indices[:5], watch.indices[5:13], watch.indices[13:]):
        assert torch.cat(epoch).sort().values.equal(torch.arange(100))


def test_order_follows_the_losses():
    order = HardFirst()
    order.losses = SampleMemory(4)
    order.losses.write(torch.arange(4), torch.tensor([0.1, 0.4, 0.2, 0.3]))
    assert order(4, 1, torch.Generator()).tolist() == [1, 3, 2, 0]


def test_base_weights_stay_where_surgery_put_them(tmp_path):
    torch.manual_seed(0)
    start = network().head.weight.detach().clone()  # the same draws as in the fit
    method = fit(KINDS["surgery"], tmp_path).lightning_module
    assert torch.equal(method.network.head.base.weight, start)
    assert method.network.head.up.abs().sum() > 0
    assert {name for name, p in method.named_parameters() if not p.requires_grad} == {
        f"network.{layer}.base.{part}" for layer in ("body.0", "head") for part in ("weight", "bias")
    }


def test_attached_parts_are_trained_at_their_rate_and_saved(tmp_path):
    trainer = fit(KINDS["trainable_parts"], tmp_path)
    method, head = trainer.lightning_module, find(trainer, Projection).head
    assert method.attached["projection"] is head
    groups = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [0.01, pytest.approx(0.001)]
    assert [id(p) for p in groups[1]["params"]] == [id(p) for p in head.parameters()]
    assert_same(load(tmp_path)["state_dict"]["attached.projection.weight"], head.weight.detach())
    assert method.double().attached["projection"].weight.dtype == torch.float64


def test_two_networks_step_by_turns(tmp_path):
    trainer = fit(KINDS["two_networks"], tmp_path)
    assert trainer.global_step == 2 * 15
    for part in ("network", "critic"):
        torch.manual_seed(0)
        before = getattr(KINDS["two_networks"]()[0], part).head.weight
        assert not torch.equal(before, getattr(trainer.lightning_module, part).head.weight)


def test_conflicting_gradients_are_projected(tmp_path):
    # d(task) = (1, 0) and d(norm) = (-1, 1) conflict: each loses its part along the other, by hand
    network = MLP(1, 2, ())
    method = PCGrad(network)
    with torch.no_grad():
        network.head.weight.zero_()
    network.head.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([network.head.weight], lr=1.0)
    method.optimizers = lambda: optimizer
    method._meter.update = lambda terms, **_: sum(terms.values())
    method._is_logged_step = lambda: False
    x, y = network.head.weight[:, 0]
    method.sum_terms({"task": x, "norm": y - x}, num_samples=1)
    torch.testing.assert_close(network.head.weight.grad[:, 0], torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(network.head.weight.detach()[:, 0], torch.tensor([-0.5, -1.5]))


def test_mixup_is_a_function_of_seed_step_and_sample():
    batch = {"input": torch.rand(8, 4), "target": torch.arange(8), "index": torch.arange(8) + 40}
    method = SimpleNamespace(datamodule=SimpleNamespace(seed=1), global_step=7)
    mixed = Mixup().transform_batch(method, batch)
    shuffled = {key: value.flip(0) for key, value in batch.items()}
    torch.testing.assert_close(Mixup().transform_batch(method, shuffled)["input"].flip(0), mixed["input"])
    partner, lam = mixed["mix_target"][:, 1], mixed["mix_lam"]  # the target of a sample is its row
    assert (partner != batch["target"]).all()
    torch.testing.assert_close(mixed["input"], lam * batch["input"] + (1 - lam) * batch["input"][partner])
    assert batch.keys() == {"input", "target", "index"}


def test_taps_collect_in_training_only(tmp_path):
    seen = []

    class Spy(Classification):
        def compute(self, batch):
            outputs = super().compute(batch)
            seen.append((self.training, self.taps._store is not None))
            return outputs

    fit(lambda: (classification(Spy), [TapNorm()]), tmp_path)
    assert seen.count((True, True)) == 15
    assert seen.count((False, False)) == 3
    assert len(seen) == 18


LAST = "checkpoints/last.ckpt"


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / LAST, weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, f"{where}: {a} and {b}"
