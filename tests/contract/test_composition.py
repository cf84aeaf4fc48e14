"""Callbacks of papers work together: every pair of one family, with one of every other family, EMA, gradients that
are accumulated over two micro-batches, and bf16.

In each composition every callback has its effect (without it the weights are others), and a fit that is cut within the
second epoch and resumed ends in the same bits. Pairs that exclude each other by their maths say so before the first
step, and stand in the docs. With sharded parameters every callback does what it does with whole ones.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

import leyden
from leyden import callbacks, optim
from leyden.callbacks import EMA, ExactResume, LastCheckpoint
from leyden.catalog.papers import read_papers
from leyden.core import Batch, Method, MethodCallback, Network
from leyden.data import Digits, GaussianNoise, TwoViews
from leyden.methods import Classification
from leyden.models import ConvNet, TransformerBlock
from leyden.plugins import AtomicCheckpointIO, FSDP2Strategy, LazyAsyncCheckpointIO, read_checkpoint
from leyden.weights import pack_weights

DOCS = Path(leyden.__file__).parents[2] / "docs" / "how-to" / "composing-methods.md"


@dataclass(frozen=True)
class Use:
    """How a callback is tried.

    Attributes:
        arguments: of its constructor.
        optimizer: that it needs.
        plugin: that it needs.
        beside: another callback that it needs.
        soft: it needs soft targets.
        views: it needs a second view, and no batch norm.
        weights: argument that takes a file of weights; it gets those that the fit starts from.
        observes: it looks on, and the weights are the same without it.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    plugin: Callable[[], CheckpointIO] | None = None
    beside: str | None = None
    soft: bool = False
    views: bool = False
    weights: str = ""
    observes: bool = False


with torch.random.fork_rng():  # the same in all processes
    torch.manual_seed(0)
    TEACHER = ConvNet(1, 10, width=2)
USES = {
    "AdaptiveBatchSize": Use({"eta": 1e-3, "interval": 4, "max_batch_size": 16}),  # in the second epoch
    "AttentionMonitor": Use(observes=True),
    "AuxiliaryZLoss": Use({"weight": 0.1}),
    "BatchFormerBranch": Use({"heads": 2}),
    "DynamicFixedPoint": Use({"bits": 4}),
    "DPSGD": Use({"target_epsilon": 8.0, "target_delta": 1e-3}),
    "CAST": Use(optimizer=partial(optim.AdamS, lr=1e-2)),
    "CRIB": Use({"kl_weight": 1e-3}),
    "CoLM": Use(),
    "Cooldown": Use({"key": "target"}),
    "CurriculumLearning": Use({"reference": TEACHER}),
    "CauchySchwarzBottleneck": Use(),
    "ConvexWeights": Use(),
    "DSnoT": Use(observes=True),  # prunes when the last checkpoint is written
    "Distillation": Use({"teacher": TEACHER}),
    "DropoutSchedule": Use({"p": 0.5}),
    "DynamicSparsity": Use({"interval": 2}),
    "DecoupledMixup": Use({"eta": 1.0}, beside="Mixup"),
    "EMA": Use({"decay": 0.9}, observes=True),
    "EMAProxy": Use({"consistency_weight": 1.0, "warmup_steps": 2}),
    "EarlyLearningRegularization": Use(),
    "EpochGap": Use(observes=True),
    "ExpertTrajectory": Use(observes=True),
    "FairnessPenalty": Use({"attributes": ["target"]}),
    "GhostBatchNorm": Use({"ghost_batch_size": 2}),
    "GradNormRecorder": Use(observes=True),
    "GradientDropout": Use(),
    "GradientNormPenalty": Use(),
    "HardBatchReplay": Use({"delta": 1.0}),
    "LanczosLearningRate": Use({"steps": 3, "scale": 0.1, "momentum": False}),
    "LazyCheckpointing": Use(plugin=LazyAsyncCheckpointIO, observes=True),
    "IGNITE": Use({"weight": 0.1, "output": "logsumexp"}),
    "LCSC": Use({"every_n_steps": 2, "iterations": 2}, observes=True),  # combines when the last checkpoint is written
    "LoRA": Use({"rank": 2, "skip": ["head"]}),
    "MaskTuning": Use({"threshold": 9e-3, "skip": ["head"]}),
    "MESA": Use({"decay": 0.5, "start_epoch": 0}),
    "MiniBatchAwareRegularization": Use({"weight": 1.0}),
    "Mixup": Use({"prob": 0.5}),  # those with memory per sample need steps that are not mixed
    "Multigrid": Use(
        # one grid, slightly coarser, so that there are as many steps
        {"shape": (1, 8), "milestones": [1], "base_epochs": 2, "long_factors": [(1.0, 0.9)], "short_factors": []}
    ),
    "NMSparsity": Use({"n": 1}),
    "NoiseFiT": Use({"std": 1.0, "layers": 1, "blocks": "stem"}),
    "OneShotPruning": Use(observes=True),  # prunes when the last checkpoint is written
    "PostHocCalibration": Use({"views": [GaussianNoise(0.1)]}, observes=True),  # takes part in tests alone
    "ProgressiveNM": Use({"n": 1}),
    "ProximalMatchingSchedule": Use({"stages": 1, "pretrain": 0.25}, soft=True),
    "SAF": Use({"delay": 1, "start_epoch": 0}),
    "SigmaReparametrization": Use(),
    "SoupReference": Use({"kl_weight": 1.0}, weights="checkpoints"),
    "SophiaHessian": Use({"interval": 2}, optimizer=partial(optim.Sophia, lr=1e-2, rho=0.5)),
    "UDS": Use({"k": 2, "max_length": 1}),
    "TestTimeMerging": Use(weights="expert", observes=True),  # takes part outside of fits alone
    "ViewBatchTraining": Use({"views": 2, "start_epoch": 0}),
    "WassersteinPredictiveCoding": Use(views=True),
    "WeightCompanding": Use({"a": 1.0, "b": 0.5}),
}
# pairs that exclude each other by their maths: what the second says of the first
EXCLUSIVE: dict[tuple[str, str], str] = {
    ("AdaptiveBatchSize", "DPSGD"): "AdaptiveBatchSize changes the step",
    ("AdaptiveBatchSize", "HardBatchReplay"): "HardBatches makes them of fixed sizes",
    ("AdaptiveBatchSize", "Multigrid"): "MultigridBatchSampler makes them of fixed sizes",
    ("AttentionMonitor", "DPSGD"): "AttentionMonitor changes the step",
    ("AuxiliaryZLoss", "DPSGD"): "AuxiliaryZLoss changes the step",
    ("BatchFormerBranch", "DPSGD"): "BatchFormerBranch changes the step",
    ("EMAProxy", "DPSGD"): "EMAProxy changes the step",
    ("EarlyLearningRegularization", "DPSGD"): "EarlyLearningRegularization changes the step",
    ("DPSGD", "HardBatchReplay"): "HardBatchReplay orders the samples, but Poisson sampling draws them",
    ("HardBatchReplay", "Multigrid"): "MultigridBatchSampler makes others",
    ("AdaptiveBatchSize", "CurriculumLearning"): "Curriculum makes them of fixed sizes",
    ("Cooldown", "CurriculumLearning"): r"has an order already \(TemperatureSampling\)",
    ("Cooldown", "HardBatchReplay"): r"has an order already \(TemperatureSampling\)",
    ("Cooldown", "ViewBatchTraining"): "has its own order, but the data have TemperatureSampling",
    ("CurriculumLearning", "HardBatchReplay"): r"has an order already \(Curriculum\)",
    ("CurriculumLearning", "ViewBatchTraining"): "has its own order, but the data have Curriculum",
    ("DPSGD", "Cooldown"): "Cooldown orders the samples, but Poisson sampling draws them",
    ("DPSGD", "CurriculumLearning"): "CurriculumLearning orders the samples, but Poisson sampling draws them",
    ("HardBatchReplay", "ViewBatchTraining"): "has its own order, but the data have HardBatches",
    ("DynamicFixedPoint", "LoRA"): "matches none of the linear layers",
    ("DecoupledMixup", "DPSGD"): "DecoupledMixup changes the step",
    ("Distillation", "DPSGD"): "Distillation changes the step",
    ("FairnessPenalty", "DPSGD"): "FairnessPenalty changes the step",
    ("GradientNormPenalty", "DPSGD"): "GradientNormPenalty changes the step",
    ("GhostBatchNorm", "DPSGD"): "stem.1 is a batch norm, which mixes them",
    ("IGNITE", "DPSGD"): "IGNITE changes the step",
    ("MESA", "DPSGD"): "MESA changes the step",
    ("LanczosLearningRate", "DPSGD"): "LanczosLearningRate changes the step",
    ("LanczosLearningRate", "Multigrid"): "sets the learning rate, but so does Multigrid",
    ("LoRA", "MiniBatchAwareRegularization"): r"no effect on embeddings that are frozen \(places\)",
    ("MiniBatchAwareRegularization", "DPSGD"): "MiniBatchAwareRegularization changes the step",
    ("Mixup", "DPSGD"): "Mixup changes the step",
    ("ViewBatchTraining", "DPSGD"): "ViewBatchTraining changes the step",
    ("WassersteinPredictiveCoding", "DPSGD"): "WassersteinPredictiveCoding changes the step",
    ("GhostBatchNorm", "WassersteinPredictiveCoding"): "is a batch norm, which mixes them",
    ("WeightCompanding", "DPSGD"): "is parametrized",
    ("MaskTuning", "DPSGD"): "is parametrized",
    ("GradientDropout", "DPSGD"): "GradientDropout changes the step",
    ("GhostBatchNorm", "MaskTuning"): "would not be a ghost batch norm",
    ("LoRA", "MaskTuning"): "has LoRA's updates: apply one of the two",
    ("MaskTuning", "MiniBatchAwareRegularization"): r"no effect on embeddings that are frozen \(places\)",
    ("ProximalMatchingSchedule", "DPSGD"): "ProximalMatchingSchedule changes the step",
    ("Multigrid", "DPSGD"): "Multigrid changes the step",
    ("NMSparsity", "DPSGD"): "NMSparsity changes the step",
    ("ProgressiveNM", "DPSGD"): "is parametrized",
    ("NoiseFiT", "DPSGD"): "NoiseFiT changes the step",
    ("SAF", "DPSGD"): "SAF changes the step",
    ("SigmaReparametrization", "DPSGD"): "is parametrized",
    ("SophiaHessian", "DPSGD"): "SophiaHessian changes the step",
    ("SoupReference", "DPSGD"): "SoupReference changes the step",
    ("CRIB", "DPSGD"): "CRIB changes the step",
    ("CoLM", "DPSGD"): "CoLM changes the step",
    ("UDS", "DPSGD"): "UDS changes the step",
    ("CauchySchwarzBottleneck", "DPSGD"): "CauchySchwarzBottleneck changes the step",
    ("CAST", "DPSGD"): "CAST changes the step",
    ("DynamicSparsity", "DPSGD"): "is parametrized",
    ("CAST", "SophiaHessian"): "SophiaHessian needs leyden.optim.Sophia as the only optimizer",
    ("NMSparsity", "ProgressiveNM"): "would both choose which weights of block.attention.q_proj are kept",
    ("DynamicSparsity", "NMSparsity"): "would both choose which weights of block.attention.q_proj are kept",
    ("DynamicSparsity", "ProgressiveNM"): "would both choose which weights of block.attention.q_proj are kept",
}

# beside these, which leave two samples of a micro-batch, the effect of the first is not seen here
UNSEEN = {"GhostBatchNorm": {"CoLM", "UDS"}, "UDS": {"CoLM"}}

# callbacks that cannot do with sharded parameters, and what they say
NEED_WHOLE_PARAMETERS = {
    "AdaptiveBatchSize": "AdaptiveBatchSize differentiates by whole parameters",
    "LCSC": "LCSC keeps whole parameters",
    "DPSGD": "DPSGD needs whole parameters",
    "GradientDropout": "GradientDropout differentiates by whole parameters",
    "GradientNormPenalty": "GradientNormPenalty differentiates by whole parameters",
    "IGNITE": "IGNITE differentiates by whole parameters",
    "LanczosLearningRate": "LanczosLearningRate differentiates by whole parameters",
    "LazyCheckpointing": "LazyAsyncCheckpointIO writes checkpoints of one process",
    "SophiaHessian": "SophiaHessian differentiates whole parameters",
    "WassersteinPredictiveCoding": "WassersteinPredictiveCoding differentiates by whole parameters",
}


ALONE = {"SinglePass"}  # ends fits that see a sample twice, as all of these do


def families() -> dict[str, list[str]]:
    """The callbacks of the catalog's papers, by family."""
    found: dict[str, set[str]] = {}
    for paper in read_papers():
        names = [part.rsplit(".", 1)[1] for part in paper.parts if part.startswith("leyden.callbacks.")]
        parts = {name: getattr(callbacks, name) for name in names}
        kinds = {name for name, part in parts.items() if isinstance(part, type) and issubclass(part, Callback)}
        found.setdefault(paper.family, set()).update(kinds - ALONE)
    return {family: sorted(names) for family, names in sorted(found.items()) if names}


def compositions() -> list[tuple[str, ...]]:
    """Every pair (or the only callback) of each family, with the first fitting one of every other family."""
    found = []
    for family, names in families().items():
        for pair in itertools.combinations(names, min(2, len(names))):
            together = list(pair)
            if not are_exclusive(together):
                for other, candidates in families().items():
                    fitting = (name for name in candidates if not are_exclusive([*together, name]))
                    if other != family and (name := next(fitting, None)):
                        together.append(name)
                found.append(tuple(together))
    return found


def are_exclusive(names: list[str]) -> bool:
    return any({*pair} <= {*names} for pair in EXCLUSIVE)


class Everything(Network):
    """Convolution, batch norm (or another), embedding, attention and linear layers."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), norm, nn.ReLU())
        self.places = nn.Embedding(16, 8)
        self.block = TransformerBlock(8, 2, mlp_ratio=1.0)
        self.feature_dim = 8
        self.head = nn.Linear(8, 10)

    def features(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)  # [N, 16, 8]
        return self.block(tokens + self.places(torch.arange(16, device=x.device))).mean(1)  # [N, 8]

    @torch.no_grad()
    def clamp_weights_(self) -> None:
        self.head.bias.clamp_(-0.1, 0.1)


class Soften(MethodCallback):
    """Makes class numbers to probabilities."""

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        return batch | {"target": nn.functional.one_hot(batch["target"], 10).float()}


class Cut(Exception):  # noqa: N818
    """Ends a fit as a kill would."""


class CutBefore(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Cut


def fit(
    names: tuple[str, ...], folder: Path, *, cut: int | None = None, resume: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Two epochs of four steps of two micro-batches of four; returns what the last checkpoint has of the module."""
    torch.manual_seed(0)
    names += tuple({other for name in names if (other := USES[name].beside)} - {*names})
    # layers first, then what is done to them
    layers = ["MaskTuning", "WeightCompanding", "LoRA", "DynamicFixedPoint", "SoupReference", "TestTimeMerging"]
    names = tuple(sorted(names, key=lambda name: layers.index(name) if name in layers else -1, reverse=True))
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    optimizer = next((USES[name].optimizer for name in names if USES[name].optimizer), sgd)
    views = any(USES[name].views for name in names)
    mixes_no_samples = ("DPSGD" in names or views) and "GhostBatchNorm" not in names
    network = Everything(nn.GroupNorm(2, 8) if mixes_no_samples else nn.BatchNorm2d(8))
    weights = folder / f"weights_{os.getpid()}.safetensors"
    if any(USES[name].weights for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(pack_weights(network.state_dict()))

    def make(name: str) -> Callback:
        files = {USES[name].weights: str(weights)} if USES[name].weights else {}
        return getattr(callbacks, name)(**USES[name].arguments, **files)

    last = LastCheckpoint(every_n_steps=3)
    average = [] if "EMA" in names else [EMA(0.9)]
    trainer = Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[
            ExactResume(),
            *([Soften()] if any(USES[name].soft for name in names) and "DPSGD" not in names else []),
            *average,
            *map(make, names),
            *([CutBefore(cut)] if cut is not None else []),
            last,
        ],
        plugins=[plugin() for name in names if (plugin := USES[name].plugin)] or [AtomicCheckpointIO()],
        default_root_dir=folder,
        logger=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"precision": "bf16-mixed"} | options,
    )
    method = Classification(network, optimizer=optimizer)
    augment = TwoViews(GaussianNoise(0.0), second=GaussianNoise(0.1)) if views else None
    data = Digits(num_train=32, batch_size=8, eval_batch_size=16, seed=0, augment=augment)
    trainer.fit(method, data, ckpt_path=last_checkpoint(folder) if resume else None)
    checkpoint = read_checkpoint(last_checkpoint(folder))
    assert checkpoint["global_step"] == (6 if "AdaptiveBatchSize" in names else 8)
    return checkpoint["current_model_state"]


def last_checkpoint(folder: Path) -> Path:
    return next(folder.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """``weights_of(names)``: weights at the end of a fit with these callbacks; each fit is made once."""
    known: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def weights(names):
        if names not in known:
            known[names] = fit(names, tmp_path_factory.mktemp("composition"))
        return known[names]

    return weights


def are_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    shared = [name for name in one if name.startswith("network.") and name in other]
    assert shared
    return all(torch.equal(one[name], other[name]) for name in shared)


def test_every_callback_of_a_paper_is_tried():
    assert sorted(USES) == sorted({name for names in families().values() for name in names})


@pytest.mark.sampled(40)
@pytest.mark.filterwarnings("ignore:.*it leaves out batches whose inputs were mixed")
@pytest.mark.parametrize("names", compositions(), ids="+".join)
def test_composition(names, weights_of, tmp_path):
    weights = weights_of(names)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    for name in names:
        without = tuple(other for other in names if other != name)
        is_needed = any(USES[other].beside == name for other in without)
        is_unseen = not UNSEEN.get(name, set()).isdisjoint(without)
        # without it, the optimizer would be another
        if USES[name].optimizer is None and not is_needed and not is_unseen:
            assert are_same(weights, weights_of(without)) == USES[name].observes, f"{name} has the wrong effect"
    with pytest.raises(Cut):
        fit(names, tmp_path, cut=5)
    resumed = fit(names, tmp_path, resume=True)
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("pair", EXCLUSIVE, ids="+".join)
def test_exclusive_pairs_say_so_and_are_documented(pair, tmp_path):
    with pytest.raises(MisconfigurationException, match=EXCLUSIVE[pair]) as caught:
        fit(pair, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.ckpt"))
    assert "`, `".join(pair) in DOCS.read_text()


def fit_sharded(name: str, folder: Path) -> tuple[dict[str, Tensor], ...] | str:
    """Weights at the end of a fit on two processes: with DDP, with sharded parameters, and with a cut and a resume."""
    options: dict[str, Any] = {"devices": 2, "precision": "32-true"}
    try:
        sharded = fit((name,), folder / "sharded", strategy=FSDP2Strategy(), **options)
    except MisconfigurationException as error:
        return str(error)
    whole = fit((name,), folder / "whole", strategy="ddp_find_unused_parameters_true", **options)
    with pytest.raises(Cut):
        fit((name,), folder / "resumed", cut=5, strategy=FSDP2Strategy(), **options)
    return whole, sharded, fit((name,), folder / "resumed", resume=True, strategy=FSDP2Strategy(), **options)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", USES)
def test_sharded_parameters_end_as_whole_ones(name, run_processes, tmp_path):
    for ends in run_processes(fit_sharded, 2, name, tmp_path):
        if name in NEED_WHOLE_PARAMETERS:
            assert NEED_WHOLE_PARAMETERS[name] in ends
            continue
        whole, sharded, resumed = ends
        assert sharded.keys() == whole.keys() == resumed.keys()
        assert all(torch.equal(resumed[key], tensor) for key, tensor in sharded.items())
        # batch norm and softmax take these out again: their gradients are rounding, which Adam divides by
        for key in ("stem.0.bias", "stem.1.running_mean", "block.attention.k_proj.bias"):
            whole.pop(f"network.{key}", None)
        for key, tensor in whole.items():
            torch.testing.assert_close(
                sharded[key], tensor, rtol=0, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
