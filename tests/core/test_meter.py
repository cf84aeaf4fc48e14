import io
import math

import pytest
import torch

from leyden.core import NonFiniteLossError, TermMeter

NAN, INF = float("nan"), float("inf")


def random_steps(num: int, dtype: torch.dtype = torch.float32):
    """Steps with changing names and numbers of samples."""
    generator = torch.Generator().manual_seed(0)
    sets = [("task",), ("task", "pull"), ("pull", "task"), ("task", "pull", "push"), ("push",)]
    for step in range(num):
        names = sets[int(torch.randint(len(sets), (), generator=generator))]
        values = (torch.randn(len(names), generator=generator) * 10 ** (step % 5)).to(dtype)
        num_samples = int(torch.randint(1, 300, (), generator=generator))
        yield step, dict(zip(names, values, strict=True)), num_samples


def reference(steps):
    """Means in float64, by the definition."""
    sums, weights, total, all_weight = {}, {}, 0.0, 0
    for _, terms, num_samples in steps:
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value) * num_samples
            weights[name] = weights.get(name, 0) + num_samples
            total += float(value) * num_samples
        all_weight += num_samples
    return {"loss": total / all_weight} | {name: sums[name] / weights[name] for name in sums}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_means_are_exact_to_float64(dtype):
    meter = TermMeter()
    for step, terms, num_samples in random_steps(500, dtype):
        meter.update(terms, num_samples=num_samples, step=step)
    assert meter.means() == pytest.approx(reference(random_steps(500, dtype)), rel=1e-12)


def test_many_equal_values_do_not_drift():  # a float32 sum would be off in the fourth digit
    meter = TermMeter()
    for step in range(2000):
        meter.update({"task": torch.tensor(0.1)}, num_samples=1000, step=step)
    assert meter.means() == {"loss": pytest.approx(float(torch.tensor(0.1)), rel=1e-13)}


def test_the_loss_is_the_sum_and_carries_the_gradient():
    a, b = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    meter = TermMeter()
    loss = meter.update({"a": a * a, "b": b}, num_samples=4, step=0)
    loss.backward()
    assert (loss.item(), a.grad.item(), b.grad.item()) == (7.0, 4.0, 1.0)
    assert not any(totals.sums.requires_grad for totals in meter._totals.values())


def test_a_single_term_is_the_loss_itself():
    task = torch.tensor(2.0, requires_grad=True)
    assert TermMeter().update({"task": task}, num_samples=4, step=0) is task


def test_reset_and_nothing_yet():
    meter = TermMeter()
    assert meter.means() == {}
    meter.update({"a": torch.tensor(1.0)}, num_samples=4, step=0)
    meter.reset()
    assert meter.means() == {}


def test_a_state_in_the_middle_changes_nothing():
    whole, cut = TermMeter(), TermMeter()
    for step, terms, num_samples in random_steps(60):
        whole.update(terms, num_samples=num_samples, step=step)
        cut.update(terms, num_samples=num_samples, step=step)
        if step in (10, 40):
            file = io.BytesIO()
            torch.save(cut.state_dict(), file)
            file.seek(0)
            cut = TermMeter()
            cut.load_state_dict(torch.load(file, weights_only=True))
    assert cut.means() == whole.means()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_term_is_named_with_its_step(bad):
    meter = TermMeter()
    meter.update({"task": torch.tensor(1.0), "pull": torch.tensor(1.0)}, num_samples=4, step=6)
    with pytest.raises(NonFiniteLossError, match=r"not finite in step 7: term 'pull'"):
        meter.update({"task": torch.tensor(1.0), "pull": torch.tensor(bad)}, num_samples=4, step=7)
    with pytest.raises(NonFiniteLossError, match=r"not finite in step 7: term 'pull'"):
        meter.check()  # stays known


def test_infinities_that_cancel_are_found():
    with pytest.raises(NonFiniteLossError, match="term 'a'"):
        TermMeter().update({"a": torch.tensor(INF), "b": torch.tensor(-INF)}, num_samples=1, step=0)


def test_a_single_bad_term_is_found():
    with pytest.raises(NonFiniteLossError, match="step 3: term 'task'"):
        TermMeter().update({"task": torch.tensor(NAN)}, num_samples=1, step=3)


def test_reset_forgets_a_bad_value():
    meter = TermMeter()
    with pytest.raises(NonFiniteLossError):
        meter.update({"task": torch.tensor(NAN)}, num_samples=1, step=3)
    meter.reset()
    meter.check()
    assert math.isfinite(meter.update({"task": torch.tensor(1.0)}, num_samples=1, step=4))
