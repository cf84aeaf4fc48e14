import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from leyden.weights import (
    ema_decay,
    ema_exponent_to_std,
    ema_std_to_exponent,
    ema_update_,
    posthoc_ema_coefficients,
    power_ema_decay,
)

# ---- decays


@pytest.mark.parametrize(
    ("step", "expected"),
    # 1 - (step)^(-2/3) at cubes, since n + 1 = step
    [(0, 0.0), (1, 0.0), (8, 0.75), (27, 1 - 1 / 9), (64, 0.9375), (1000, 0.99), (10**6, 0.9999), (10**9, 0.9999)],
)
def test_warmup_by_hand(step, expected):
    assert ema_decay(step, warmup=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "arguments", "expected"),
    [
        (1, {}, 0.0),
        (2, {}, 0.9999),
        (2, {"decay": 0.5}, 0.5),
        (5, {"update_after_step": 4}, 0.0),
        (6, {"update_after_step": 4}, 0.9999),
        (4, {"update_after_step": 4}, 0.0),
        (4, {"warmup": True, "warmup_gamma": 3.0, "warmup_power": 1.0}, 0.5),  # 1 - 1 / (1 + 3/3)
        (4, {"warmup": True, "warmup_gamma": 3.0, "warmup_power": 1.0, "min_decay": 0.6}, 0.6),
        (4, {"warmup": True, "warmup_gamma": 3.0, "warmup_power": 1.0, "decay": 0.4}, 0.4),
        (14, {"warmup": True, "warmup_gamma": 3.0, "warmup_power": 1.0, "update_after_step": 10}, 0.5),
        (1, {"warmup": True, "min_decay": 0.6}, 0.0),  # the first update copies in any case
    ],
)
def test_decay_by_hand(step, arguments, expected):
    assert ema_decay(step, **arguments) == pytest.approx(expected, rel=1e-12)


def test_decay_is_that_of_model_ema_v3():
    def reference(step, decay, gamma, power, min_decay, update_after_step):
        step = max(0, step - update_after_step - 1)
        if step <= 0:
            return 0.0
        return max(min(1 - (1 + step / gamma) ** -power, decay), min_decay)

    for step in range(0, 5000, 7):
        for decay, gamma, power, least, after in [(0.9999, 1.0, 2 / 3, 0.0, 0), (0.99, 10.0, 0.75, 0.2, 100)]:
            got = ema_decay(
                step,
                decay=decay,
                warmup=True,
                warmup_gamma=gamma,
                warmup_power=power,
                min_decay=least,
                update_after_step=after,
            )
            assert got == pytest.approx(reference(step, decay, gamma, power, least, after), abs=1e-15)


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.97), (0.10, 6.94)])  # section 3.1 of the paper
def test_widths_of_the_paper(std, exponent):
    assert ema_std_to_exponent(std) == pytest.approx(exponent, abs=0.005)
    assert ema_exponent_to_std(exponent) == pytest.approx(std, abs=5e-5)


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_width_and_exponent_are_inverse(std):
    assert ema_exponent_to_std(ema_std_to_exponent(std)) == pytest.approx(std, rel=1e-9)


def test_a_flat_profile_has_the_width_of_the_uniform_distribution():
    assert ema_exponent_to_std(0.0) == pytest.approx(12**-0.5, rel=1e-15)
    assert ema_std_to_exponent(12**-0.5) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("exponent", [0.0, 6.94, 16.97])
def test_width_is_the_standard_deviation_of_the_profile(exponent):
    time = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    weight = time**exponent / (time**exponent).sum()
    mean = (weight * time).sum()
    std = (weight * (time - mean) ** 2).sum().sqrt()
    assert ema_exponent_to_std(exponent) == pytest.approx(std.item(), rel=1e-6)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2888, 1.0])
def test_impossible_widths(std):
    with pytest.raises(ValueError, match=rf"std must lie in \(0, 0\.2887\], got {std}"):
        ema_std_to_exponent(std)


def test_power_decay_by_hand():
    assert power_ema_decay(1, exponent=5.0) == 0.0
    assert power_ema_decay(4, exponent=1.0) == 0.5625  # (3/4)^2
    assert power_ema_decay(8, exponent=1.0, delta=4) == 0.25
    assert power_ema_decay(100, std=0.05) == pytest.approx(0.99 ** (ema_std_to_exponent(0.05) + 1), rel=1e-12)
    with pytest.raises(ValueError, match="step must be at least delta=4, got 3"):
        power_ema_decay(3, delta=4)


@pytest.mark.parametrize("delta", [1, 5])
def test_exponent_0_is_the_running_mean(delta):
    iterates = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    average = torch.tensor(123.0, dtype=torch.float64)  # forgotten by the first update
    for step in range(delta, 41, delta):
        decay = power_ema_decay(step, exponent=0.0, delta=delta)
        average = decay * average + (1 - decay) * iterates[step - 1]
        torch.testing.assert_close(average, iterates[delta - 1 : step : delta].mean())


def test_power_average_weights_iterates_by_their_power():
    exponent, last = ema_std_to_exponent(0.1), 4000
    weights = torch.zeros(last, dtype=torch.float64)  # of each iterate in the average
    for step in range(1, last + 1):
        decay = power_ema_decay(step, std=0.1)
        weights *= decay
        weights[step - 1] += 1 - decay
    steps = torch.arange(1, last + 1, dtype=torch.float64)
    profile = steps**exponent / (steps**exponent).sum()
    assert weights.sum().item() == pytest.approx(1.0)
    late = slice(last // 4, None)
    torch.testing.assert_close(weights[late], profile[late], rtol=5e-3, atol=0)


# ---- averages made after training


def profile(time, step, std):
    g = ema_std_to_exponent(std)
    density = np.zeros_like(time)
    inside = time <= step
    density[inside] = (g + 1) * (time[inside] / step) ** g / step
    return density


@pytest.mark.parametrize(("out_step", "out_std"), [(400, 0.07), (400, 0.15), (330, 0.08), (250, 0.12)])
def test_posthoc_is_the_least_squares_fit(out_step, out_std):
    steps, stds = [100, 200, 300, 400] * 2, [0.05] * 4 + [0.10] * 4
    time = (np.arange(400_000) + 0.5) / 1000
    basis = np.stack([profile(time, step, std) for step, std in zip(steps, stds, strict=True)], 1)
    reference = np.linalg.lstsq(basis, profile(time, out_step, out_std), rcond=None)[0]
    got = posthoc_ema_coefficients(steps, stds, out_step, out_std)
    assert got.dtype == torch.float64
    assert got.sum().item() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(got.numpy(), reference / reference.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", range(6))
def test_posthoc_finds_an_input_again(position):
    steps, stds = [100.0, 200.0, 300.0] * 2, [0.05] * 3 + [0.1] * 3
    got = posthoc_ema_coefficients(steps, stds, steps[position], stds[position])
    expected = torch.nn.functional.one_hot(torch.tensor(position), 6).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_posthoc_of_one_average_is_that_average():
    assert posthoc_ema_coefficients([10], [0.1], 8, 0.2).tolist() == [1.0]


def test_posthoc_makes_an_average_that_was_not_kept():
    last, generator = 2000, torch.Generator().manual_seed(0)
    iterates = torch.randn(last, 16, dtype=torch.float64, generator=generator).cumsum(0)

    def average(std, steps):
        kept, value = [], torch.zeros(16, dtype=torch.float64)
        for step in range(1, last + 1):
            value = value.lerp(iterates[step - 1], 1 - power_ema_decay(step, std=std))
            if step in steps:
                kept.append(value)
        return kept

    steps = list(range(200, last + 1, 200))
    kept = torch.stack(average(0.05, steps) + average(0.1, steps))
    wanted = average(0.075, [last])[0]
    weights = posthoc_ema_coefficients(steps * 2, [0.05] * 10 + [0.1] * 10, last, 0.075)
    error = (weights @ kept - wanted).norm()
    assert error < 0.05 * (kept - wanted).norm(dim=1).min()


@pytest.mark.parametrize(("steps", "stds"), [([], []), ([1, 2], [0.1])])
def test_posthoc_needs_equal_lists(steps, stds):
    with pytest.raises(ValueError, match=r"in_steps and in_stds must have the same length >= 1, got \d and \d"):
        posthoc_ema_coefficients(steps, stds, 1, 0.1)


# ---- the update


def states(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": torch.randn(3, 2, generator=generator).to(dtype), "b": torch.randn(5, generator=generator).to(dtype)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_the_float64_recursion(dtype):
    iterates = states(20, dtype)
    average = {name: value.float() for name, value in iterates[0].items()}
    reference = {name: value.double() for name, value in iterates[0].items()}
    for step, current in enumerate(iterates[1:], start=2):
        decay = ema_decay(step, decay=0.9, warmup=True)
        ema_update_(average, current, decay)
        for name in reference:
            reference[name] = decay * reference[name] + (1 - decay) * current[name].double()
    for name in reference:
        assert average[name].dtype == torch.float32
        torch.testing.assert_close(average[name].double(), reference[name], rtol=1e-5, atol=1e-6)


def test_updates_are_those_of_torch():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    reference = AveragedModel(model, avg_fn=get_ema_avg_fn(0.8))
    average = {name: torch.full_like(value, 7.0) for name, value in model.state_dict().items()}
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        reference.update_parameters(model)
        ema_update_(average, model.state_dict(), ema_decay(step, decay=0.8))
        for name, value in reference.module.state_dict().items():
            torch.testing.assert_close(average[name], value)


def test_the_coefficients_of_k_updates():
    iterates, decay = states(6, torch.float64), 0.7
    average = {name: value.clone() for name, value in iterates[0].items()}
    for current in iterates[1:]:
        ema_update_(average, current, decay)
    coefficients = [decay**5] + [(1 - decay) * decay ** (5 - i) for i in range(1, 6)]
    for name in average:
        expected = sum(c * state[name] for c, state in zip(coefficients, iterates, strict=True))
        torch.testing.assert_close(average[name], expected)


def test_0_copies_and_1_freezes_bit_for_bit():
    first, second = states(2)
    average = {name: value.clone() for name, value in first.items()}
    ema_update_(average, second, 1.0)
    assert all(torch.equal(average[name], first[name]) for name in first)
    ema_update_(average, second, 0.0)
    assert all(torch.equal(average[name], second[name]) for name in first)


def test_constant_weights_stay():
    (state,) = states(1)
    average = {name: value.clone() for name, value in state.items()}
    for _ in range(100):
        ema_update_(average, state, 0.999)
    assert all(torch.equal(average[name], state[name]) for name in state)


def test_small_updates_are_not_lost_in_float32():
    average, current = {"w": torch.ones(1)}, {"w": torch.full((1,), 2.0, dtype=torch.bfloat16)}
    for _ in range(1000):
        ema_update_(average, current, 0.999)
    assert average["w"].item() == pytest.approx(2 - 0.999**1000, rel=1e-4)


def test_integers_are_copied():
    average = {"w": torch.zeros(2), "count": torch.tensor(3)}
    ema_update_(average, {"w": torch.ones(2), "count": torch.tensor(8)}, 0.75)
    assert average["count"].item() == 8
    assert average["w"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=rf"decay must lie in \[0, 1\], got {decay}"):
        ema_update_({}, {}, decay)


def test_other_names_or_shapes_are_named():
    with pytest.raises(ValueError, match="the names differ, first at 'b'"):
        ema_update_({"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"the shapes of 'a' differ: \(2,\) and \(1,\)"):
        ema_update_({"a": torch.zeros(2)}, {"a": torch.zeros(1)}, 0.5)
