import copy

import pytest
import torch
from lightning.pytorch import Trainer

from leyden.callbacks import MESA, SAF, mix_batch
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


class Recorder(MethodCallback):
    """Notes what each evaluation of the loss saw, and the network after each optimizer step."""

    def __init__(self):
        self.steps = []
        self.networks = []

    def on_train_start(self, trainer, pl_module):
        self.networks.append(copy.deepcopy(pl_module.network))

    def loss_terms(self, method, batch, outputs, terms):
        names = {name: term.item() for name, term in terms.items()}
        self.steps.append((method.current_epoch, method.global_step, batch, outputs.logits.detach().double(), names))
        return terms

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == len(self.networks):
            self.networks.append(copy.deepcopy(pl_module.network))


class TwiceSGD(torch.optim.SGD):
    """Evaluates the loss a second time, at other weights."""

    def step(self, closure):
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            loss = closure()
        gradients = [p.grad.clone() for p in parameters]
        torch._foreach_add_([p.data for p in parameters], gradients)
        with torch.enable_grad():
            closure()
        torch._foreach_sub_([p.data for p in parameters], gradients)
        super().step()
        return loss


def fit(*callbacks, optimizer=torch.optim.SGD, max_epochs=6, accumulate=1):
    torch.manual_seed(0)
    method = Classification(MLP(64, 10, (16,), dropout=0.1), optimizer=lambda parameters: optimizer(parameters, lr=0.5))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        limit_val_batches=1,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # 2 optimizer steps in an epoch; 8 of the 40 samples are left over, others each time
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=40, seed=1))
    return method


def divergence(now, past, temperature):
    p, q = (now.double() / temperature).softmax(-1), (past.double() / temperature).softmax(-1)
    return temperature**2 * (q * (q.log() - p.log())).sum(-1)


# ---- SAF


def saf_by_hand(steps, *, delay, start_epoch, end_epoch=99, temperature=5.0, evaluations=1):
    """The term of every evaluation, None where there is none."""
    outputs, terms = {}, []
    for number, (epoch, _, batch, logits, _) in enumerate(steps):
        index = batch["index"].tolist()
        if number % evaluations == 0:
            outputs |= {(epoch, sample): row for sample, row in zip(index, logits, strict=True)}
        if not start_epoch < epoch < end_epoch:
            terms.append(None)
            continue
        rows = [row for row, sample in enumerate(index) if (epoch - delay, sample) in outputs]
        past = torch.stack([outputs[epoch - delay, index[row]] for row in rows])
        terms.append(divergence(logits[rows], past, temperature).mean().item())
    return terms


@pytest.mark.parametrize("kwargs", [{"delay": 1, "start_epoch": 0}, {"delay": 2, "start_epoch": 1, "end_epoch": 4}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_of_a_fit(kwargs, accumulate):
    recorder = Recorder()
    fit(SAF(weight=0.5, **kwargs), recorder, accumulate=accumulate)
    assert len(recorder.steps) == 6 * 2 * accumulate
    expected = saf_by_hand(recorder.steps, **kwargs)
    for step, term in zip(recorder.steps, expected, strict=True):
        assert step[4].get("saf") == (None if term is None else pytest.approx(0.5 * term, abs=5e-6))
    assert any(term and term > 1e-3 for term in expected)


def test_outputs_at_the_weights_of_the_step_are_remembered():
    recorder = Recorder()
    fit(SAF(delay=1, start_epoch=0), recorder, optimizer=TwiceSGD, max_epochs=3)
    assert len(recorder.steps) == 3 * 2 * 2
    expected = saf_by_hand(recorder.steps, delay=1, start_epoch=0, evaluations=2)
    for step, term in zip(recorder.steps, expected, strict=True):
        assert step[4].get("saf") == (None if term is None else pytest.approx(0.3 * term, abs=5e-6))


def test_the_memory_of_an_epoch_has_only_its_samples():
    saf, recorder = SAF(delay=2, start_epoch=1), Recorder()
    fit(saf, recorder)
    for epoch in (3, 4, 5):
        seen = sorted(sample for step in recorder.steps if step[0] == epoch for sample in step[2]["index"].tolist())
        assert len(seen) == 32
        assert saf.past[epoch % 3].written.nonzero().flatten().tolist() == seen


def test_only_what_will_be_read_is_written():
    saf = SAF(delay=2, start_epoch=3, end_epoch=5)  # epoch 4 reads epoch 2
    fit(saf, max_epochs=4)
    assert [bool(memory.written.any()) for memory in saf.past] == [False, False, True]


class Mix(MethodCallback):
    """Mixes in every second epoch."""

    def transform_batch(self, method, batch):
        if method.current_epoch % 2 == 0:
            return batch
        return mix_batch(batch, torch.arange(len(batch["index"])).flip(0), 0.7, 0.7, num_classes=10)


def test_mixed_inputs_are_neither_written_nor_compared():
    saf, recorder = SAF(delay=1, start_epoch=0), Recorder()
    with pytest.warns(UserWarning, match="SAF remembers single samples: it leaves out batches whose inputs were mixed"):
        fit(Mix(), saf, recorder, max_epochs=3)
    assert not saf.past[1].written.any()
    assert [step[4].get("saf") for step in recorder.steps] == [None, None, None, None, 0.0, 0.0]


def test_saf_changes_the_fit_and_weight_zero_does_not():
    plain, weightless, heavy = (
        fit(*callbacks, max_epochs=3)
        for callbacks in ([], [SAF(0.0, delay=1, start_epoch=0)], [SAF(1.0, delay=1, start_epoch=0)])
    )
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weightless.state_dict()[name])
        assert not torch.equal(tensor, heavy.state_dict()[name])


def test_resuming_with_another_delay_is_refused():
    saf = SAF(delay=1, start_epoch=0)
    fit(saf, max_epochs=1)
    state, saf.past = saf.state_dict(), [*saf.past, saf.past[0]]
    saf.delay = 2
    with pytest.raises(ValueError, match="SAF was saved with delay=1, this run has delay=2"):
        saf.load_state_dict(state)
    SAF().load_state_dict(state)  # a test run reads the checkpoint too, and has no use for the memory


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weight": -0.1}, "weight must be at least 0, got -0.1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"delay": 0}, r"delay must lie in 1..start_epoch \+ 1 = 6, got 0"),
        ({"delay": 4, "start_epoch": 2}, r"delay must lie in 1..start_epoch \+ 1 = 3, got 4"),
        ({"end_epoch": 6}, r"end_epoch must be above start_epoch \+ 1 = 6, got 6"),
        ({"start_epoch": -2}, "start_epoch must be at least -1"),
    ],
)
def test_bad_arguments_of_saf(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SAF(**kwargs)


def test_saf_needs_the_index():
    with pytest.raises(ValueError, match=r"SAF needs the batch keys \['index'\]"):
        SAF().loss_terms(None, {"input": torch.zeros(1)}, None, {})


# ---- MESA


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, TwiceSGD])
def test_mesa_compares_with_the_average(accumulate, optimizer):
    mesa, recorder = MESA(weight=0.5, decay=0.8, start_epoch=0, end_epoch=3), Recorder()
    method = fit(mesa, recorder, accumulate=accumulate, optimizer=optimizer, max_epochs=4)
    averages = [recorder.networks[0]]
    for network in recorder.networks[1:]:
        average = copy.deepcopy(averages[-1])
        for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
            mean.data = 0.8 * mean.data + 0.2 * weight.data
        averages.append(average)
    assert len(averages) == 4 * 2 + 1
    for epoch, step, batch, logits, terms in recorder.steps:
        if epoch in (1, 2):
            past = averages[step].eval()(batch["input"]).detach()
            expected = 0.5 * divergence(logits, past, 5.0).mean().item()
            assert terms["mesa"] == pytest.approx(expected, abs=5e-6)
        else:
            assert "mesa" not in terms
    for mean, ours in zip(averages[-1].parameters(), method.frozen["MESA"].module.parameters(), strict=True):
        torch.testing.assert_close(ours, mean, rtol=0, atol=1e-6)
        assert not ours.requires_grad


def test_mesa_draws_nothing_and_weight_zero_changes_nothing():
    plain, weightless, heavy = (
        fit(*callbacks, max_epochs=2)
        for callbacks in ([], [MESA(0.0, start_epoch=-1)], [MESA(1.0, decay=0.5, start_epoch=-1)])
    )
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weightless.state_dict()[name])  # with dropout in the network
        assert not torch.equal(tensor, heavy.state_dict()[name])


def test_two_averages_do_not_collide():
    method = fit(MESA(decay=0.5), MESA(decay=0.9), max_epochs=1)
    fast, slow = method.frozen["MESA"], method.frozen["MESA_2"]
    assert not torch.equal(fast.module.head.weight, slow.module.head.weight)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weight": -0.1}, "weight must be at least 0, got -0.1"),
        ({"temperature": -1.0}, "temperature must be positive, got -1"),
        ({"decay": 1.1}, r"decay must lie in \[0, 1\], got 1.1"),
        ({"end_epoch": 3}, r"end_epoch must be above start_epoch \+ 1 = 6, got 3"),
    ],
)
def test_bad_arguments_of_mesa(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MESA(**kwargs)
