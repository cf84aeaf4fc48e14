from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional

from leyden.callbacks import EarlyLearningRegularization, Mixup
from leyden.core import MethodCallback, SampleMemory
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


class Recorder(MethodCallback):
    """Notes what the step saw: epoch, samples, logits, terms, loss."""

    def __init__(self):
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        terms_now = {name: term.item() for name, term in terms.items()}
        self.steps.append((method.current_epoch, batch["index"].tolist(), outputs.logits.detach().double(), terms_now))
        return terms


class Sam(torch.optim.SGD):
    """Evaluates the loss twice in a step, the second time at other weights."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient)
        super().step()
        return loss


def fit(*callbacks, optimizer=torch.optim.SGD, max_epochs=3, accumulate=1):
    torch.manual_seed(0)
    method = Classification(MLP(64, 10, (16,)), optimizer=lambda parameters: optimizer(parameters, lr=0.5))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        limit_val_batches=2,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=40, seed=1))
    return method


def memory_by_hand(steps, momentum, evaluations=1):
    """Targets after the fit, and the term of every evaluation."""
    targets, terms = torch.zeros(40, 10, dtype=torch.float64), []
    for number, (_, index, logits, _) in enumerate(steps):
        p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        if number % evaluations == 0:
            for row, sample in enumerate(index):
                targets[sample] = momentum * targets[sample] + (1 - momentum) * p[row] / p[row].sum()
        terms.append(sum((1 - targets[sample] @ p[row]).log() for row, sample in enumerate(index)).item() / len(index))
    return targets, terms


@pytest.mark.parametrize(("optimizer", "evaluations"), [(torch.optim.SGD, 1), (Sam, 2)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_memory_and_terms_of_a_fit(optimizer, evaluations, accumulate):
    if evaluations == 2 and accumulate == 2:
        evaluations = None  # Lightning runs the first micro-batch once and the second one twice
    elr, recorder = EarlyLearningRegularization(weight=2.0, momentum=0.6), Recorder()
    fit(elr, recorder, optimizer=optimizer, accumulate=accumulate)
    steps = recorder.steps
    if evaluations is None:
        assert len(steps) == 3 * 2 * 3
        steps = [step for number, step in enumerate(steps) if number % 3 < 2]
    else:
        assert len(steps) == 3 * 2 * accumulate * evaluations
    targets, terms = memory_by_hand(steps, 0.6, evaluations or 1)
    assert [step[3]["elr"] for step in steps] == pytest.approx([2.0 * term for term in terms], rel=1e-4)
    torch.testing.assert_close(elr.memory.values.double(), targets, rtol=0, atol=1e-6)
    seen = sorted({sample for step in steps for sample in step[1]})
    assert elr.memory.written.nonzero().flatten().tolist() == seen


def test_weight_zero_is_cross_entropy_bit_for_bit():
    plain = fit()
    weightless = fit(EarlyLearningRegularization(weight=0.0))
    heavy = fit(EarlyLearningRegularization(weight=1.0))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weightless.state_dict()[name])
        assert not torch.equal(tensor, heavy.state_dict()[name])


def test_mixed_inputs_are_left_out():
    elr, recorder = EarlyLearningRegularization(), Recorder()
    with pytest.warns(UserWarning, match="EarlyLearningRegularization remembers single samples: it leaves out batches"):
        fit(Mixup(stop_epoch=1), elr, recorder, max_epochs=2)
    assert [set(step[3]) for step in recorder.steps] == [{"task"}, {"task"}, {"task", "elr"}, {"task", "elr"}]
    targets, _ = memory_by_hand([step for step in recorder.steps if step[0] == 1], 0.7)
    torch.testing.assert_close(elr.memory.values.double(), targets, rtol=0, atol=1e-6)


def test_soft_targets():
    elr = EarlyLearningRegularization()
    elr.memory = SampleMemory(4, 3)
    batch = {"index": torch.tensor([2, 0]), "target": torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])}
    outputs = SimpleNamespace(logits=torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]))
    task = functional.cross_entropy(outputs.logits, batch["target"])
    assert set(elr.loss_terms(None, batch, outputs, {"task": task})) == {"task", "elr"}
    assert elr.memory.written.tolist() == [True, False, True, False]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        EarlyLearningRegularization(weight=-1.0)
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got"):
            EarlyLearningRegularization(momentum=momentum)
    elr = EarlyLearningRegularization()
    with pytest.raises(ValueError, match=r"EarlyLearningRegularization needs the batch keys \['index'\]"):
        elr.loss_terms(None, {"input": torch.zeros(1)}, None, {})
