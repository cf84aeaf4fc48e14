import copy
from functools import partial

import pytest
import torch
from torch.nn import functional

from leyden.callbacks import BatchFormerBranch
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


class Recorder(MethodCallback):
    """Notes the terms, what they were made of, and the gradients of the network."""

    def __init__(self):
        self.steps, self.gradients = [], []

    def loss_terms(self, method, batch, outputs, terms):
        attached = copy.deepcopy(method.attached) if len(method.attached) else None
        head = copy.deepcopy(method.network.head)
        self.steps.append(({k: v.item() for k, v in terms.items()}, batch, outputs.features.detach(), head, attached))
        return terms

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([p.grad.clone() for p in pl_module.network.parameters()])


class Soften(MethodCallback):
    def transform_batch(self, method, batch):
        return batch | {"target": functional.one_hot(batch["target"], 10).float().mul(0.9).add(0.01)}


class Unlabel(MethodCallback):
    def transform_batch(self, method, batch):
        return batch | {"labeled": batch["index"] % 2 == 0}


def fit(make_trainer, *callbacks, hidden=(8,)):
    torch.manual_seed(0)
    recorder = Recorder()
    method = Classification(MLP(64, 10, hidden), optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer(*callbacks, recorder, max_steps=3, limit_val_batches=0)
    trainer.fit(method, Digits(num_train=64, batch_size=16, seed=0))
    return recorder, method


@pytest.mark.parametrize("change", [None, Soften, Unlabel])
def test_the_sum_is_twice_the_mean_over_both_halves(make_trainer, change):
    recorder, _ = fit(make_trainer, *([change()] if change else []), BatchFormerBranch(2, 0.0))
    assert len(recorder.steps) == 3
    for terms, batch, features, head, attached in recorder.steps:
        with torch.no_grad():
            doubled, target = attached["BatchFormerBranch"](features, batch["target"])
            logits = head(doubled)
            if "labeled" in batch:
                labeled = torch.cat([batch["labeled"]] * 2)
                logits, target = logits[labeled], target[labeled]
            expected = 2.0 * functional.cross_entropy(logits, target).item()
        assert terms.keys() == {"task", "batchformer"}
        assert sum(terms.values()) == pytest.approx(expected, rel=1e-5)


def test_weight_scales_and_zero_leaves_the_gradients_of_the_network(make_trainer):
    plain, _ = fit(make_trainer)
    none, _ = fit(make_trainer, BatchFormerBranch(2, 0.0, weight=0.0))
    one, _ = fit(make_trainer, BatchFormerBranch(2, 0.0))
    three, _ = fit(make_trainer, BatchFormerBranch(2, 0.0, weight=3.0))
    for expected, gradients in zip(plain.gradients, none.gradients, strict=True):
        assert all(map(torch.equal, expected, gradients))
    assert not torch.equal(plain.gradients[0][0], one.gradients[0][0])
    assert three.steps[0][0]["batchformer"] == pytest.approx(3.0 * one.steps[0][0]["batchformer"])


def test_the_encoder_is_trained_and_evaluation_has_the_plain_network(make_trainer):
    recorder, method = fit(make_trainer, BatchFormerBranch(2))
    before, after = recorder.steps[0][-1].state_dict(), method.attached.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    method.eval()
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(method.compute({"input": x}).logits, method.network(x))


def test_bad_input_is_refused(make_trainer):
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"weight must be at least 0, got {weight}"):
            BatchFormerBranch(weight=weight)
    with pytest.raises(ValueError, match="dim must be a multiple of heads, .* got dim=6 and heads=4"):
        fit(make_trainer, BatchFormerBranch(), hidden=(6,))
