import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.callbacks import EMA
from leyden.core import MethodCallback, Network
from leyden.data import Digits, RotatedDigits
from leyden.methods import MetaDMoE
from leyden.models import ConvNet
from leyden.nn import ExpertAggregator

ANGLES = [0.0, 40.0, 80.0]


class Linear(Network):
    """Linear features, whose adaptation is known in closed form."""

    def __init__(self):
        super().__init__()
        self.feature_dim = 4
        self.body = nn.Linear(64, 4, bias=False)
        self.head = nn.Linear(4, 10)

    def features(self, x):
        return self.body(x.flatten(1))


class Seen(Callback):
    """Batches, methods and rates of each step."""

    def __init__(self):
        self.batches, self.methods, self.rates = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        self.methods.append(copy.deepcopy({"network": pl_module.network, **pl_module.attached}))
        rates = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
        names = ("aggregator", "experts", "readout")
        firsts = [pl_module.network.head.weight, *(next(pl_module.attached[name].parameters()) for name in names)]
        self.rates.append([rates[id(p)] for p in firsts])


def make(network=None, **kwargs):
    torch.manual_seed(0)
    network = network or Linear()
    aggregator = ExpertAggregator(network.feature_dim, heads=2)
    arguments = {"experts": 3, "support": 12, "inner_lr": 0.5, "student_lr": 0.05, "aggregator_lr": 0.02}
    return MetaDMoE(network, aggregator=aggregator, **(arguments | kwargs))


@pytest.fixture
def fit(make_trainer):
    def fit(method, *callbacks, data=None, **kwargs):
        seen = Seen()
        options = {"precision": "64-true", "max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 0} | kwargs
        trainer = make_trainer(seen, *callbacks, **options)
        data = data or RotatedDigits(
            angles=ANGLES, test_angles=[20.0, 60.0], domain_batches=True, batch_size=32, num_train=300, seed=0
        )
        trainer.fit(method, datamodule=data)
        return seen, trainer

    return fit


def meta_loss(parts, batch, support, inner_lr):
    """The loss of a step of meta-training, for linear features."""
    network, aggregator = parts["network"], parts["aggregator"].eval()
    x, query = batch["input"][:support].flatten(1), batch["input"][support:].flatten(1)
    own = int(batch["domain"][0]) % 3
    others = [expert.features(x) for number, expert in enumerate(parts["experts"]) if number != own]
    target = aggregator(torch.stack(others, 1))
    weight = network.body.weight
    stepped = weight - inner_lr * 2.0 / (len(x) * 4) * (x @ weight.T - target).T @ x
    return functional.cross_entropy(network.head(query @ stepped.T), batch["target"][support:])


def test_meta_training_against_finite_differences(fit):
    seen, _ = fit(make(pretrain=0.5, optimizer=partial(torch.optim.SGD, lr=0.1)))
    assert [number.item() for batch in seen.batches for number in batch["domain"].unique()] != [0, 0, 0, 0]
    assert seen.rates == [[0.1] * 4] * 2 + [[0.05, 0.02, 0.0, 0.0]] * 2
    before, after, batch = seen.methods[2], seen.methods[3], seen.batches[2]
    parts = {name: module.requires_grad_(False) for name, module in before.items()}

    def difference(p, place):
        value, step = p[place].item(), 1e-5
        losses = []
        for moved in (value + step, value - step):
            p[place] = moved
            losses.append(meta_loss(parts, batch, 12, 0.5).item())
        p[place] = value
        return (losses[0] - losses[1]) / (2 * step)

    for name, lr, places in (
        ("network", 0.05, {"body.weight": [(0, 20), (3, 43)], "head.weight": [(2, 1)], "head.bias": [(5,)]}),
        ("aggregator", 0.02, {"blocks.0.fc2.weight": [(1, 3)], "blocks.0.attention.in_proj_weight": [(9, 2), (1, 1)]}),
    ):
        old, new = dict(before[name].named_parameters()), dict(after[name].named_parameters())
        for key, chosen in places.items():
            for place in chosen:
                slope = difference(old[key], place)
                assert abs(slope) > 1e-6
                assert (new[key][place] - old[key][place]).item() == pytest.approx(-lr * slope, rel=1e-4)
    for name in ("experts", "readout"):
        for p, q in zip(before[name].parameters(), after[name].parameters(), strict=True):
            assert torch.equal(p, q)


def test_experts_learn_their_own_domains(fit):
    method = make(pretrain=1.0, optimizer=partial(torch.optim.SGD, lr=0.1))
    seen, trainer = fit(method)
    before, after, batch = seen.methods[0], seen.methods[1], seen.batches[0]
    own = int(batch["domain"][0]) % 3
    for number, expert in enumerate(before["experts"]):
        loss = functional.cross_entropy(expert(batch["input"]), batch["target"])
        gradients = torch.autograd.grad(loss, list(expert.parameters()))
        learned = after["experts"][number].parameters()
        for p, q, gradient in zip(expert.parameters(), learned, gradients, strict=True):
            torch.testing.assert_close(q, p - 0.1 * gradient if number == own else p)
    network = before["network"]
    gradients = torch.autograd.grad(
        functional.cross_entropy(network(batch["input"]), batch["target"]), list(network.parameters())
    )
    for p, q, gradient in zip(network.parameters(), after["network"].parameters(), gradients, strict=True):
        torch.testing.assert_close(q, p - 0.1 * gradient)
    assert {"train/task_epoch", "train/expert_epoch", "train/aggregator_epoch"} <= trainer.callback_metrics.keys()
    assert method._adapted == {}


def test_without_a_step_it_is_plain_training_on_the_query(fit):
    seen, _ = fit(make(pretrain=0.0, inner_lr=0.0, optimizer=partial(torch.optim.SGD, lr=0.1)))
    network, batch = seen.methods[0]["network"], seen.batches[0]
    loss = functional.cross_entropy(network(batch["input"][12:]), batch["target"][12:])
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for p, q, gradient in zip(network.parameters(), seen.methods[1]["network"].parameters(), gradients, strict=True):
        torch.testing.assert_close(q, p - 0.05 * gradient)


def test_a_callback_that_computes_once_more_gets_the_adapted_network(fit):
    same = []

    class Again(MethodCallback):
        def loss_terms(self, method, batch, outputs, terms):
            same.append(torch.equal(method.compute(batch).logits, outputs.logits))
            return terms

    method = make(pretrain=0.5)
    fit(method, Again())
    assert same == [True] * 4
    assert method._adapted_params == {}


def test_meta_training_begins_with_a_new_optimizer_state(fit):
    method = make(pretrain=0.5)
    fit(method)
    (optimizer,) = [method.optimizers().optimizer]
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


def test_adaptation_in_closed_form(fit):
    method = make(pretrain=0.5)
    fit(method)
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(method.state_dict())
    adapted = method.adapt(x)
    rows = x.flatten(1)
    target = method.attached["aggregator"].eval()(
        torch.stack([expert.features(x) for expert in method.attached["experts"]], 1)
    )
    weight = method.network.body.weight
    expected = weight - 0.5 * 2.0 / 20 * (rows @ weight.T - target).T @ rows
    torch.testing.assert_close(adapted.body.weight, expected)
    assert torch.equal(adapted.head.weight, method.network.head.weight)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert not any(p.requires_grad for p in adapted.parameters())


def test_targets_that_are_met_change_nothing():
    method = make()
    method.attached["aggregator"] = nn.Identity()
    method.attached["aggregator"].forward = lambda features: features.mean(1)
    for expert in method.attached["experts"]:
        expert.load_state_dict(method.network.state_dict())
    adapted = method.adapt(torch.rand(5, 1, 8, 8))
    torch.testing.assert_close(adapted.body.weight, method.network.body.weight)


@pytest.mark.parametrize("eval_batch_size", [360, 50])
def test_evaluation_adapts_to_each_domain(fit, make_trainer, eval_batch_size):
    method = make(pretrain=0.5, optimizer=partial(torch.optim.Adam, lr=0.01))
    data = RotatedDigits(
        angles=ANGLES,
        test_angles=[20.0, 60.0],
        domain_batches=True,
        batch_size=32,
        eval_batch_size=eval_batch_size,
        num_train=300,
        seed=0,
    )
    fit(method, data=data, precision=32, max_epochs=4)
    tensors = data.dataset("test").tensors
    logits = torch.empty(len(tensors["target"]), 10)
    for domain in (3, 4):
        rows = tensors["domain"] == domain
        logits[rows] = method.adapt(tensors["input"][rows][:12])(tensors["input"][rows])
    (result,) = make_trainer().test(method, datamodule=data, verbose=False)
    assert result["test/loss"] == pytest.approx(functional.cross_entropy(logits, tensors["target"]).item(), rel=1e-5)
    right = (logits.argmax(1) == tensors["target"]).float().mean().item()
    assert result["test/accuracy"] == pytest.approx(right)
    plain = functional.cross_entropy(method.network(tensors["input"]), tensors["target"]).item()
    assert result["test/loss"] != pytest.approx(plain, rel=1e-3)
    assert method._adapted == {}


def test_before_meta_training_evaluation_is_plain(fit):
    _, trainer = fit(make(pretrain=1.0), limit_val_batches=1.0, precision=32, max_epochs=1)
    tensors = trainer.datamodule.dataset("val").tensors
    network = trainer.lightning_module.network
    expected = functional.cross_entropy(network(tensors["input"]), tensors["target"]).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, rel=1e-5)


def test_parametrised_weights(fit):
    plain, wrapped = make(pretrain=0.0), make(pretrain=0.0)
    parametrize.register_parametrization(wrapped.network.body, "weight", nn.Identity())
    first, second = (fit(method)[0].methods[-1]["network"] for method in (plain, wrapped))
    torch.testing.assert_close(first.body.weight, second.body.weight)


def test_soft_targets():
    method = make()
    batch = {"input": torch.rand(6, 1, 8, 8), "target": torch.arange(6), "domain": torch.arange(6)}
    outputs = method.compute(batch)
    hard = method.loss_terms(batch, outputs)
    soft = method.loss_terms(batch | {"target": functional.one_hot(batch["target"], 10).float()}, outputs)
    assert hard.keys() == soft.keys() == {"task", "expert", "aggregator"}
    for name in hard:
        torch.testing.assert_close(hard[name], soft[name])


def test_convolutions_half_precision_accumulation_and_an_average(fit):
    method = make(ConvNet(1, 10, width=4, dropout=0.5), support=8)
    seen, trainer = fit(
        method, EMA(decay=0.5), precision="bf16-mixed", accumulate_grad_batches=2, limit_train_batches=4,
        limit_val_batches=1.0,
    )  # fmt: skip
    assert trainer.global_step == 4
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert all(module.training for module in method.network.modules())
    statistics = [seen.methods[number]["network"].state_dict() for number in (4, 7)]
    for name in statistics[0]:
        if "running" in name:
            assert torch.equal(statistics[0][name], statistics[1][name]), "measured in meta-training"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"experts": 1}, "experts must be at least 2"),
        ({"experts": [Linear(), ConvNet(1, 10, width=2)]}, "must have one size of features"),
        ({"pretrain": 1.5}, "pretrain must lie in"),
        ({"support": 0}, "support must be at least 1"),
        ({"student_lr": -1.0}, "student_lr must be at least 0"),
        ({"scheduler": object()}, "scheduler must be null"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        make(**arguments)


def test_sharded_parameters_are_refused():
    method = make()
    method._device_mesh = object()
    with pytest.raises(MisconfigurationException, match="the strategy shards them: train with DDP"):
        method.configure_model()


def test_bad_set_ups(fit):
    with pytest.raises(MisconfigurationException, match="support=40 leaves nothing of a batch of 32 samples"):
        fit(make(support=40))
    with pytest.raises(MisconfigurationException, match="support=16 leaves nothing of a batch of 16 samples"):
        fit(make(support=16), accumulate_grad_batches=2)
    with pytest.raises(MisconfigurationException, match="needs batches of one domain"):
        fit(make(pretrain=0.0), data=RotatedDigits(batch_size=32))
    with pytest.raises(ValueError, match=r"MetaDMoE needs the batch keys \['domain'\]"):
        fit(make(pretrain=0.0), data=Digits(batch_size=32))
    with pytest.raises(MisconfigurationException, match="set trainer.max_epochs or trainer.max_steps"):
        fit(make(), max_epochs=-1)
