"""Keyed random numbers, against SplitMix64 in numpy's unsigned integers and against what they must look like."""

import numpy as np
import pytest
import torch

from leyden.core import normal, sample_keys, uniform

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
SHIFTS = [np.uint64(bits) for bits in (30, 27, 31, 40)]


def mix64(z):
    z = (z ^ (z >> SHIFTS[0])) * MULTIPLIER_1
    z = (z ^ (z >> SHIFTS[1])) * MULTIPLIER_2
    return z ^ (z >> SHIFTS[2])


def unsigned(*numbers):
    return np.array([number % 2**64 for number in numbers], dtype=np.uint64)


def reference_keys(seed, step, index):
    base = mix64(unsigned(seed) * GAMMA)
    base = mix64(base + unsigned(step) * GAMMA)
    return mix64(base + unsigned(*index))


def reference_uniform(keys, num, stream=0):
    keys = mix64(keys + unsigned(2 * stream + 1) * MULTIPLIER_1)
    bits = mix64(keys[:, None] + np.arange(1, num + 1, dtype=np.uint64) * GAMMA)
    return (bits >> SHIFTS[3]).astype(np.float64) / 2**24


def test_the_reference_is_splitmix64():  # the first outputs of the published generator from state 0
    state = np.arange(1, 4, dtype=np.uint64) * GAMMA
    assert mix64(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 0), (0, 1), (42, 123_456), (2**63 + 7, 5), (-3, 2**40)])
def test_keys(seed, step):
    index = [0, 1, 2, 99_999, 2**40]
    keys = sample_keys(seed, step, torch.tensor(index))
    assert keys.dtype == torch.int64
    assert keys.numpy().view(np.uint64).tolist() == reference_keys(seed, step, index).tolist()


@pytest.mark.parametrize("stream", [0, 1, 1000])
def test_uniform(stream):
    keys = sample_keys(7, 3, torch.arange(50))
    numbers = uniform(keys, 2, 5, stream=stream)
    assert numbers.shape == (50, 2, 5)
    assert numbers.dtype == torch.float32
    expected = reference_uniform(reference_keys(7, 3, range(50)), 10, stream).reshape(50, 2, 5)
    assert np.array_equal(numbers.double().numpy(), expected)


def test_one_number_per_key_without_a_shape():
    keys = sample_keys(0, 0, torch.arange(3))
    assert torch.equal(uniform(keys), uniform(keys, 4)[:, 0])
    assert normal(keys).shape == (3,)


def test_normal_is_the_inverse_of_the_distribution_function():
    keys = sample_keys(1, 2, torch.arange(2000))
    centred = uniform(keys, 10).double() + 2.0**-25  # the middle of the interval that the 24 bits stand for
    expected = torch.special.ndtri(centred)
    torch.testing.assert_close(normal(keys, 10).double(), expected, rtol=2e-4, atol=2e-6)


def test_a_draw_does_not_depend_on_the_row_or_on_the_others():
    index = torch.tensor([5, 2, 9])
    alone = uniform(sample_keys(0, 1, index[1:2]), 3)
    assert torch.equal(uniform(sample_keys(0, 1, index), 3)[1:2], alone)
    assert torch.equal(uniform(sample_keys(0, 1, index.flip(0)), 3)[1:2], alone)


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    normal(sample_keys(0, 0, torch.arange(3)), 4)
    assert torch.equal(torch.get_rng_state(), before)


NUMBERS = {
    "samples": lambda: uniform(sample_keys(0, 0, torch.arange(40_000)))[None],
    "steps": lambda: torch.stack([uniform(sample_keys(0, step, torch.arange(100))) for step in range(400)]),
    "seeds": lambda: torch.stack([uniform(sample_keys(seed, 0, torch.arange(100))) for seed in range(400)]),
    "elements": lambda: uniform(sample_keys(0, 0, torch.arange(2)), 20_000),
    "streams": lambda: torch.stack([uniform(sample_keys(0, 0, torch.arange(100)), stream=s) for s in range(400)]),
}


@pytest.mark.parametrize("over", NUMBERS)
def test_moments_and_independence(over):
    numbers = NUMBERS[over]().double()
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    flat = numbers.flatten()
    n = len(flat)
    assert abs(flat.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(flat.square().mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    counts = torch.bincount((flat * 64).long(), minlength=64).double()
    assert ((counts - n / 64).square() / (n / 64)).sum() < 63 + 5 * (2 * 63) ** 0.5  # chi squared
    for table in (numbers, numbers.T):  # neighbours in each direction
        a, b = table[..., :-1].flatten() - 0.5, table[..., 1:].flatten() - 0.5
        if len(a):
            assert abs((a * b).mean() * 12) < 5 / len(a) ** 0.5


def test_streams_of_one_key_are_independent():
    keys = sample_keys(3, 1, torch.arange(20_000))
    first, second = normal(keys), normal(keys, stream=1)
    assert abs((first * second).mean()) < 5 / 20_000**0.5
    assert abs(first.square().mean() - 1.0) < 5 * (2 / 20_000) ** 0.5
    assert abs(first.pow(4).mean() - 3.0) < 5 * (96 / 20_000) ** 0.5
    assert first.abs().max() < 5.4
