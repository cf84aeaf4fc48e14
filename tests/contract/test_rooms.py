"""What every part of a room must keep, found by walking the package: a new part is tested without being named here.

A part whose constructor needs arguments without default finds them in ``ARGUMENTS`` by their names. A method whose
batch is not that of a classifier stands in ``NETWORKS`` and ``BATCHES``, a callback that needs a network or an
optimizer of its own in ``NETWORKS`` or ``OPTIMIZERS``.
"""

import importlib
import inspect
import io
import pkgutil
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import leyden
from leyden.core import Method, MethodCallback, Network
from leyden.data import Digits, GaussianNoise, TwoViews
from leyden.methods import Classification
from leyden.models import GPT, MLP, AttentionMIL, ConvNet, SelfTuningMLP, StackedAutoencoder, UNet, ViT
from leyden.nn import ExpertAggregator, GaussianSplat2d, SoftMasks
from leyden.weights import pack_weights

ROOMS = sorted(module.name for module in pkgutil.iter_modules(leyden.__path__) if module.ispkg)


def public(room: str) -> dict[str, Any]:
    module = importlib.import_module(f"leyden.{room}")
    return {name: getattr(module, name) for name in getattr(module, "__all__", [])}


def parts(room: str, kind: type) -> list[Any]:
    """The public, concrete subclasses of a kind."""
    found = [p for p in public(room).values() if inspect.isclass(p) and issubclass(p, kind) and p is not kind]
    return [pytest.param(part, id=part.__name__) for part in found if not inspect.isabstract(part)]


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(12).view(3, 4)
SERIES = torch.rand(4, 24, 3, generator=torch.Generator().manual_seed(0))
ARGUMENTS: dict[str, Any] = {
    "in_features": 3 * 8 * 8,
    "in_dim": 8 * 8,
    "in_channels": 3,
    "num_outputs": 10,
    "num_classes": 10,
    "num_variates": 3,
    "depth": 18,
    "image_size": 8,
    "patch_size": 4,
    "patch_dim": 8,
    "vocab_size": 12,
    "context": 4,
    "teacher": ConvNet(1, 10, width=4),
    "in_shape": [8],
    "out_shape": [8],
    "experts": 2,
    "aggregator": ExpertAggregator(8, heads=2),
    "view": GaussianNoise(0.1),
    "views": [GaussianNoise(0.1)],
    "num_clusters": 3,
    "network": MLP(3 * 8 * 8, 10, (8,)),
    "soft_masks": SoftMasks(4, 8, 8),
    "sigma": 4.0,
    "target_epsilon": 8.0,
    "target_delta": 1e-3,
    "heads": {"target": 10},
    "schedule": [0.2, 1.0, 0.0],
    "attributes": ["target"],
    "gamma": 2.0,
    "counts": torch.tensor([4, 2]),
}


class Greys(Network):
    """Embeds the grey levels of the digits' pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Embedding(17, 4)
        self.feature_dim = 4
        self.head = nn.Linear(4, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.levels((16.0 * x).long().flatten(1)).mean(1)


NETWORKS = {
    "BagClassification": lambda: AttentionMIL(64, 10),
    "MHIM": lambda: AttentionMIL(64, 10),
    "CoLM": lambda: ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2),
    "ConsistencyTraining": lambda: UNet(3, width=4),
    "DualPeers": lambda: GaussianSplat2d(4, 8, 8),
    "AttentionMonitor": lambda: ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2),
    "DEPICT": lambda: StackedAutoencoder(3 * 8 * 8, 10),
    "DPSGD": lambda: MLP(64, 10, (8,)),
    "LanguageModeling": lambda: GPT(12, 4, dim=8, depth=1, num_heads=2),
    "SelfTuning": lambda: SelfTuningMLP(3 * 8 * 8, 10, (8,)),
    "MaskedFit": lambda: GaussianSplat2d(4, 8, 8),
    "NoiseFiT": lambda: ViT(8, 4, 10, in_channels=1, dim=8, depth=3, num_heads=2),
    "MiniBatchAwareRegularization": Greys,
    "WassersteinPredictiveCoding": lambda: MLP(64, 10, (8,)),
}
SEGMENTED = {"input": IMAGES, "target": IMAGES, "index": torch.arange(4), "segments": IMAGES[:, :2] > 0.5}
BATCHES = {
    "ConvexReLU": {"input": IMAGES, "target": torch.linspace(0, 1, 40).view(4, 10)},
    "DualPeers": SEGMENTED,
    "LanguageModeling": {"input": TOKENS, "target": TOKENS},
    "MetaDMoE": {"input": IMAGES, "target": torch.arange(4), "domain": torch.arange(4) % 2},
    "MaskedFit": SEGMENTED,
    "OfflineOptimization": {"input": IMAGES, "target": torch.linspace(0, 1, 40).view(4, 10)},
    "Regression": {"input": IMAGES, "target": torch.linspace(0, 1, 40).view(4, 10)},
    "TDPrediction": {"input": IMAGES, "target": torch.linspace(0, 1, 40).view(4, 10)},
}

BESIDE = {"DecoupledMixup": "Mixup", "ProximalMatchingSchedule": "Mixup"}  # a callback that another one needs
KNOBS: dict[str, dict[str, Any]] = {  # for fits of two steps with AdamW
    "LanczosLearningRate": {"momentum": False},
    "Multigrid": {
        "shape": (1, 8),
        "milestones": [1],
        "base_epochs": 2,
        "long_factors": [(1.0, 1.0)],
        "short_factors": [],
    },
    "ProximalMatchingSchedule": {"stages": 1},
}
OPTIMIZERS = {"CAST": "AdamS", "SophiaHessian": "Sophia"}
STEPS = {"AdaptiveObGD": {"delta": 0.5}, "ObGD": {"delta": 0.5}}  # what ``step`` of an optimizer needs


def make(part: type, **given: Any) -> Any:
    """The part with its defaults."""
    for name, parameter in inspect.signature(part).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if (needed or name == "teacher") and name not in given:  # of several Distillations the first has it
            assert name in ARGUMENTS, f"{part.__name__} needs {name!r}: give ARGUMENTS a value for it"
            given[name] = ARGUMENTS[name]
    return part(**given)


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- every room: one public name, one place, one docstring


def by_kind(line: tuple[str, ...]) -> tuple[str, int, str]:
    """Order of the names of a file as ruff has it: constants (or what is written so), classes, functions."""
    file, name = line[:2]
    return file, 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def check_exports(module: ModuleType, stub: str, files: dict[str, list[str]]) -> None:
    """What the files of a room declare public is what its stub re-exports, each name once and from its own file."""
    lines = re.findall(r"^from \.([\w.]+) import (\w+) as (\w+)$", stub, re.MULTILINE)
    assert len(lines) == len(stub.strip().splitlines()), "a line of the stub is not `from .file import Name as Name`"
    assert lines == sorted(lines, key=by_kind), "the stub is not sorted"
    assert all(name == alias for _, name, alias in lines), "a name is re-exported as another"
    twice = [name for name, count in Counter(name for _, name, _ in lines).items() if count > 1]
    assert not twice, f"exported twice: {twice}"
    declared = sorted(((file, name) for file, names in files.items() for name in names), key=by_kind)
    assert [(file, name) for file, name, _ in lines] == declared, "the stub and the `__all__` of the files differ"
    assert sorted(module.__all__) == sorted(name for _, name in declared)


def check_documented(part: Any) -> None:
    if inspect.isclass(part) or inspect.isfunction(part):
        own = part.__dict__.get("__doc__") if inspect.isclass(part) else part.__doc__
        assert own, f"{part.__name__} has no docstring"
        assert own.split("\n")[0].strip()[-1:] in ".:", f"the docstring of {part.__name__} does not begin with a line"


def declared_names(module: ModuleType) -> dict[str, list[str]]:
    files = {}
    for info in pkgutil.iter_modules(module.__path__):
        if not info.name.startswith("_"):
            file = importlib.import_module(f"{module.__name__}.{info.name}")
            assert hasattr(file, "__all__"), f"{file.__name__} has no __all__"
            files[info.name] = file.__all__
    return files


@pytest.mark.parametrize("room", ROOMS)
def test_room_exports_what_its_files_declare(room):
    module = importlib.import_module(f"leyden.{room}")
    assert module.__doc__
    stub = Path(module.__file__).with_suffix(".pyi")
    if stub.exists():  # a room without public names has none
        check_exports(module, stub.read_text(), declared_names(module))


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_documented(room):
    for part in public(room).values():
        check_documented(part)


def test_a_name_means_one_thing_in_all_rooms():
    homes: dict[str, Any] = {}
    for room in ROOMS:
        for name, part in public(room).items():
            assert homes.setdefault(name, part) is part, f"{name} of {room} is another thing than that of another room"


# ---- losses: function, twin, reduction


def squeezed(name: str) -> str:
    return name.replace("_", "").lower().removesuffix("loss")


def twin_of(name: str, room: dict[str, Any]) -> type[nn.Module]:
    modules = [p for p in room.values() if inspect.isclass(p) and issubclass(p, nn.Module)]
    twins = [module for module in modules if squeezed(module.__name__) == squeezed(name)]
    assert len(twins) == 1, f"{name} must have one nn.Module twin of its name, got {twins}"
    return twins[0]


def check_loss(function: Callable[..., Tensor], twin: type[nn.Module]) -> None:
    parameters = inspect.signature(function).parameters.values()
    inputs = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    knobs = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    own = twin.__init__ is not nn.Module.__init__  # one without knobs has none
    given = {p.name: p.default for p in inspect.signature(twin).parameters.values() if own}
    assert given == knobs, f"the knobs or defaults of {twin.__name__} differ from those of its function"
    forward = [name for name in inspect.signature(twin.forward).parameters if name != "self"]
    assert forward == inputs, f"{twin.__name__}.forward takes other inputs than its function"
    assert knobs.get("reduction", "mean") == "mean", "the default reduction must be 'mean'"
    required = {name: ARGUMENTS[name] for name, value in knobs.items() if value is inspect.Parameter.empty}
    if len(inputs) == 2 and inputs[0] in ("input", "logits") and inputs[1] == "target":
        check_loss_values(function, twin, required, reduces="reduction" in knobs)


def check_loss_values(function: Any, twin: Any, knobs: dict[str, Any], *, reduces: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    shape, num_classes = ((6, 10), 2) if function.__name__ in BINARY else ((6,), 10)
    target = torch.randint(num_classes, shape, generator=generator)
    value = function(logits, target, **knobs)
    assert value.shape == (), "the mean must be a scalar"
    assert torch.equal(value, twin(**knobs)(logits, target)), "twin and function differ"
    [gradient] = torch.autograd.grad(value, logits)
    assert gradient.isfinite().all()
    assert gradient.any(), "the gradient must be finite and not zero"
    if not reduces:
        return
    assert function(logits, target, reduction="sum", **knobs).shape == ()
    with pytest.raises(ValueError, match="reduction"):
        function(logits, target, reduction="average", **knobs)
    try:
        each = function(logits, target, reduction="none", **knobs)
    except ValueError:  # a batch-wise loss
        return
    assert each.shape == (6,), "`none` must give one value per sample"
    torch.testing.assert_close(each.mean(), value)
    torch.testing.assert_close(each.sum(), function(logits, target, reduction="sum", **knobs))


BINARY = {"binary_dice_loss", "tversky_loss"}  # their targets are 0 and 1, of the shape of the scores
LOSSES = [name for name in public("losses") if name.endswith("_loss") and name != "reduce_loss"]  # which all call


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    room = public("losses")
    check_loss(room[name], twin_of(name, room))


# ---- optim: optimizers


def two_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((4, 3), (3,))]


def train(optimizer: Optimizer, parameters: list[nn.Parameter], *, start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        before = [p.grad.clone() for p in parameters]
        loss = torch.tensor(float(step))

        def closure(loss: Tensor = loss) -> Tensor:
            assert torch.is_grad_enabled(), "the closure must run with gradients"
            return loss

        settings = STEPS.get(type(optimizer).__name__, {})
        assert optimizer.step(closure, **settings) is loss, "step must return what the closure returned"
        for p, gradient in zip(parameters, before, strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, gradient), "step wrote into p.grad"


def check_optimizer(kind: Callable[..., Optimizer]) -> None:
    with pytest.raises(ValueError, match="lr|learning rate"):
        kind(two_parameters(), lr=-1.0)
    ours, start = two_parameters(), two_parameters()
    optimizer = kind(ours)
    train(optimizer, ours, start=0, stop=3)
    assert all(not torch.equal(p, q) for p, q in zip(ours, start, strict=True)), "a parameter was not changed"

    copies = [nn.Parameter(p.detach().clone()) for p in ours]
    resumed = kind(copies)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    train(optimizer, ours, start=3, stop=6)
    train(resumed, copies, start=3, stop=6)
    assert all(map(torch.equal, ours, copies)), "a loaded state goes on otherwise"

    grouped = two_parameters()
    matrix, vector = grouped
    groups = kind([{"params": [matrix]}, {"params": [vector]}])
    train(groups, grouped, start=0, stop=6)
    assert all(map(torch.equal, ours, grouped)), "two groups of equal settings train otherwise than one"
    rate = groups.param_groups[0]["lr"]
    apart = kind([{"params": [matrix]}, {"params": [vector], "lr": rate / 2}])
    assert [group["lr"] for group in apart.param_groups] == [rate, rate / 2]


# how an optimizer is made from parameters and a rate that needs more than these
MAKES_OPTIMIZER: dict[str, Callable[..., Optimizer]] = {
    "AdamS": lambda params, **rate: public("optim")["AdamS"](params, total_steps=10, **rate),
    "GreedyBCD": lambda params, **rate: public("optim")["GreedyBCD"](params, block_size=15, lipschitz=2.0, **rate),
    "InterleavedOffload": lambda params, **rate: public("optim")["InterleavedOffload"](
        params, partial(torch.optim.AdamW, **rate)
    ),
}


@pytest.mark.parametrize("kind", parts("optim", Optimizer))
def test_optimizers(kind):
    check_optimizer(MAKES_OPTIMIZER.get(kind.__name__, kind))


# ---- optim: schedules


def schedule(kind: type[LRScheduler]) -> LRScheduler:
    parameters = inspect.signature(kind).parameters
    if "total_steps" in parameters:
        assert parameters["total_steps"].default is None, "total_steps must be left out by default: the fit fills it in"
    optimizer = torch.optim.SGD(two_parameters(), lr=0.5)
    return make(kind, optimizer=optimizer, **({"total_steps": 10} if "total_steps" in parameters else {}))


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def check_scheduler(kind: type[LRScheduler]) -> None:
    whole = rates(schedule(kind), 9)
    assert len(set(whole)) > 1, "the rate never changes"
    first, second = schedule(kind), schedule(kind)
    assert rates(first, 4) == whole[:4]
    second.optimizer.load_state_dict(saved_and_loaded(first.optimizer.state_dict()))
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    assert rates(second, 5) == whole[4:], "a loaded state goes on otherwise"


@pytest.mark.parametrize("kind", parts("optim", LRScheduler))
def test_schedulers(kind):
    check_scheduler(kind)


# ---- callbacks


def quick_fit(method: Method, callbacks: list[Callback], folder: Path) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    views = TwoViews(GaussianNoise(0.0), second=GaussianNoise(0.1))
    trainer.fit(method, datamodule=Digits(batch_size=8, num_train=24, seed=0, augment=views))
    return trainer


def check_callback(kind: type[MethodCallback], folder: Path) -> None:
    given = KNOBS.get(kind.__name__, {})
    network = NETWORKS.get(kind.__name__, lambda: ConvNet(1, 10, width=4))()
    for name in {"checkpoints", "expert"} & inspect.signature(kind).parameters.keys():
        (folder / "weights.safetensors").write_bytes(pack_weights(network.state_dict()))
        given = given | {name: str(folder / "weights.safetensors")}
    foreign = make(kind, **given)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[foreign])
    with pytest.raises(MisconfigurationException, match=kind.__name__):
        foreign.setup(trainer, BoringModel(), "fit")
    pair = [make(kind, **given) for _ in range(2)]
    name = OPTIMIZERS.get(kind.__name__)
    optimizer = {"optimizer": public("optim")[name]} if name else {}
    others = [public("callbacks")[BESIDE[kind.__name__]]()] if kind.__name__ in BESIDE else []
    trainer = quick_fit(Classification(network, **optimizer), [*pair, *others], folder)
    keys = [callback.state_key for callback in pair]
    assert len(set(keys)) == 2, "two of one class save under one name"
    assert not any(str(id(callback)) in key for callback, key in zip(pair, keys, strict=True)), (
        "another run will not find the state: setup must call super().setup"
    )
    for callback in pair:
        state = callback.state_dict()
        callback.load_state_dict(saved_and_loaded(state))
        assert callback.state_dict().keys() == state.keys()
    # the parts and the module of a fit serve in the test and the fit that follow
    trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    quick_fit(trainer.lightning_module, [*pair, *others], folder)


@pytest.mark.parametrize("kind", parts("callbacks", MethodCallback))
def test_callbacks(kind, tmp_path):
    check_callback(kind, tmp_path)


# ---- models


def check_network(kind: type[nn.Module]) -> None:
    assert issubclass(kind, Network), f"{kind.__name__} is no Network"
    assert kind.forward is Network.forward, "forward must stay head(features(x))"
    if kind.__name__ in OTHER_PEOPLES:
        return
    given = {"in_channels": 3} if "in_channels" in inspect.signature(kind).parameters else {}
    network = make(kind, **given).eval()
    x = SERIES if kind.__name__ == "UnifiedVariateTransformer" else TOKENS if hasattr(network, "vocab_size") else IMAGES
    features = network.features(x)
    assert features.shape[-1] == network.feature_dim, "feature_dim is not the size of the features"
    assert torch.equal(network(x), network.head(features))
    assert len(network(x)) == len(x)
    fresh = make(kind, **given).eval()
    fresh.load_state_dict(saved_and_loaded(network.state_dict()))
    assert torch.equal(fresh(x), network(x)), "the state dict does not hold all of the network"


OTHER_PEOPLES = {"TimmNetwork", "TransformersNetwork"}  # doors to other packages' models, tried in tests/models


@pytest.mark.parametrize("kind", parts("models", Network))
def test_networks(kind):
    check_network(kind)


# ---- methods


def check_method(kind: type[Method]) -> None:
    assert issubclass(kind, Method), f"{kind.__name__} is no Method"
    name = kind.__name__
    network = NETWORKS.get(name, lambda: MLP(3 * 8 * 8, 10, (8,)))
    second = {"second_network": network()} if "second_network" in inspect.signature(kind).parameters else {}
    method = make(kind, network=network(), **second)
    batch = BATCHES.get(name, {"input": IMAGES, "target": torch.arange(4), "index": torch.arange(4)})
    before = {key: value.clone() for key, value in batch.items()}
    terms = method.loss_terms(batch, method.compute(batch))
    assert terms, "there must be a term"
    for key, term in terms.items():
        assert isinstance(term, Tensor), f"term {key!r} is no tensor"
        assert term.shape == (), f"term {key!r} is no scalar"
        assert term.isfinite(), f"term {key!r} is not finite"
    assert sum(terms.values()).requires_grad
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], value) for key, value in before.items()), "the batch was written into"


@pytest.mark.parametrize("kind", parts("methods", object))
def test_methods(kind):
    check_method(kind)


# ---- each walker can fail


def good_loss(logits: Tensor, target: Tensor, *, power: float = 2.0, reduction: str = "mean") -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction}")
    each = logits.gather(-1, target[:, None])[:, 0].abs() ** power
    return each if reduction == "none" else getattr(each, reduction)()


class Good(nn.Module):
    def __init__(self, *, power: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.knobs = {"power": power, "reduction": reduction}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return good_loss(logits, target, **self.knobs)


class OtherDefault(Good):
    def __init__(self, *, power: float = 3.0, reduction: str = "mean") -> None:
        super().__init__(power=power, reduction=reduction)


class OtherInputs(Good):
    def forward(self, logits, labels):
        return good_loss(logits, labels, **self.knobs)


class OtherValue(Good):
    def forward(self, logits, target):
        return 2 * super().forward(logits, target)


def unknown_reduction_loss(logits: Tensor, target: Tensor, *, power: float = 2.0, reduction: str = "mean") -> Tensor:
    return good_loss(logits, target, power=power, reduction="mean" if reduction == "average" else reduction)


def none_is_mean_loss(logits: Tensor, target: Tensor, *, power: float = 2.0, reduction: str = "mean") -> Tensor:
    return good_loss(logits, target, power=power, reduction="mean" if reduction == "none" else reduction)


class NoGradients(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        super().step()
        return loss


class WritesGrad(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(2)
        return super().step(closure)


class Forgets(torch.optim.SGD):
    count = 0

    def step(self, closure=None):
        self.count += 1
        self.param_groups[0]["params"][0].data.mul_(1 + self.count)
        return super().step(closure)


class NoLoss(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)


class OnlyFirst(torch.optim.SGD):
    def step(self, closure=None):
        kept = [p.detach().clone() for p in self.param_groups[-1]["params"][-1:]]
        loss = super().step(closure)
        self.param_groups[-1]["params"][-1].data.copy_(kept[0])
        return loss


class AnyRate(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, abs(lr))


class ForgetsStep(LRScheduler):
    def __init__(self, optimizer, total_steps=None):
        self.numbers = iter(range(1, 100))
        super().__init__(optimizer)

    def get_lr(self):
        return [rate / next(self.numbers) for rate in self.base_lrs]

    def state_dict(self):
        return {}


class NeedsSteps(ForgetsStep):
    def __init__(self, optimizer, total_steps):
        super().__init__(optimizer)


class AnyModule(MethodCallback):
    def setup(self, trainer, pl_module, stage):
        pass


class NoNumber(MethodCallback):
    def setup(self, trainer, pl_module, stage):
        if not isinstance(pl_module, Method):
            raise MisconfigurationException("NoNumber")


class OneName(MethodCallback):
    state_key = "OneName"


class Unsafe(MethodCallback):
    def state_dict(self):
        return {"when": Path("here")}


class AttachesAnew(MethodCallback):
    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        pl_module.attach(self.state_key, nn.Linear(2, 2))


class NoHead(MLP):
    def forward(self, x):
        return self.features(x)


class WrongSize(MLP):
    def __init__(self, in_features, num_outputs):
        super().__init__(in_features, num_outputs, (8,))
        self.feature_dim = 9


class FloatTerm(Classification):
    def loss_terms(self, batch, outputs):
        return {"task": 0.5}


class RowTerm(Classification):
    def loss_terms(self, batch, outputs):
        return {"task": outputs.logits.sum(-1)}


class Scribbles(Classification):
    def loss_terms(self, batch, outputs):
        batch["seen"] = batch["target"]
        return super().loss_terms(batch, outputs)


def undocumented() -> None:
    pass


STUB = "from .file import A as A\nfrom .file import B as B\n"
ROOM = ModuleType("room")
ROOM.__all__ = ["A", "B"]


@pytest.mark.parametrize(
    ("check", "stub", "match"),
    [
        (check_exports, (ROOM, STUB + "from .file import B as B\n", {"file": ["A", "B"]}), "twice"),
        (check_exports, (ROOM, STUB, {"file": ["A", "B", "C"]}), "differ"),
        (check_exports, (ROOM, "from .file import B as B\nfrom .file import A as A\n", {}), "not sorted"),
        (check_exports, (ROOM, "from .file import A as B\n", {"file": ["A"]}), "as another"),
        (check_exports, (ROOM, "import file\n", {}), "a line of the stub"),
        (check_documented, (undocumented,), "no docstring"),
        (twin_of, ("lonely_loss", {"Good": Good}), "must have one"),
        (check_loss, (good_loss, OtherDefault), "knobs or defaults"),
        (check_loss, (good_loss, OtherInputs), "other inputs"),
        (check_loss, (good_loss, OtherValue), "twin and function differ"),
        (check_loss, (unknown_reduction_loss, Good), "DID NOT RAISE"),
        (check_loss, (none_is_mean_loss, Good), "one value per sample"),
        (check_optimizer, (NoGradients,), "with gradients"),
        (check_optimizer, (WritesGrad,), "wrote into"),
        (check_optimizer, (Forgets,), "goes on otherwise"),
        (check_optimizer, (NoLoss,), "closure returned"),
        (check_optimizer, (OnlyFirst,), "not changed"),
        (check_optimizer, (AnyRate,), "DID NOT RAISE"),
        (check_scheduler, (ForgetsStep,), "goes on otherwise"),
        (check_scheduler, (NeedsSteps,), "left out by default"),
        (check_network, (nn.Linear,), "no Network"),
        (check_network, (NoHead,), "must stay"),
        (check_network, (WrongSize,), "feature_dim"),
        (check_method, (nn.Linear,), "no Method"),
        (check_method, (FloatTerm,), "no tensor"),
        (check_method, (RowTerm,), "no scalar"),
        (check_method, (Scribbles,), "seen"),
    ],
)
def test_walker_bites(check, stub, match):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=match):
        check(*stub)


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        (AnyModule, pytest.fail.Exception, "DID NOT RAISE"),
        (NoNumber, AssertionError, "super"),
        (OneName, AssertionError, "under one name"),
        (Unsafe, UnpicklingError, "weights_only"),
        (AttachesAnew, ValueError, "already"),
    ],
)
def test_callback_walker_bites(kind, error, match, tmp_path):
    with pytest.raises(error, match=match):
        check_callback(kind, tmp_path)


def test_walkers_let_good_parts_pass(tmp_path):
    check_exports(ROOM, STUB, {"file": ["A", "B"]})
    assert twin_of("good_loss", {"Good": Good}) is Good
    check_loss(good_loss, Good)
    check_optimizer(torch.optim.AdamW)
    check_callback(MethodCallback, tmp_path)
