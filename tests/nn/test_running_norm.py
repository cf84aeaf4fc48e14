import io
import math

import pytest
import torch

from leyden.nn import RewardScale, RunningNorm

# SampleMeanStd of mohmdelsayed/streaming-drl at 407dca7, and the two wrappers' formulas: samples and rewards below
NORMALISED = [
    [0.0, 0.0],
    [-0.7071067766407647, 0.7071067804008734],
    [-0.8864312355361209, 1.0722219281667882],
    [0.4964554912158289, 1.2962378476764143],
    [0.7246095770702158, 1.447845531908629],
    [-0.9513588524639762, 1.5573014500758124],
    [-0.7528326797015069, 1.6400504438388928],
]
SCALED = [
    -0.41614683446640827,
    -1.510372455788545,
    1.7996761766396683,
    -0.3130200191530837,
    -1.7510224776532843,
    1.7932617698364115,
    0.2878833724768473,
]
SAMPLES = torch.tensor([[math.sin(1.7 * t), 10.0 + t * t] for t in range(1, 8)], dtype=torch.float64)
REWARDS = torch.tensor([math.cos(2.0 * t) for t in range(1, 8)], dtype=torch.float64)
ENDS = torch.arange(1, 8) == 4


@pytest.mark.parametrize("pieces", [7, 3, 1])
def test_samples_one_by_one_or_in_rows(pieces):
    norm = RunningNorm(2)
    seen = torch.cat([norm(rows) for rows in SAMPLES.tensor_split(pieces)])
    torch.testing.assert_close(seen, torch.tensor(NORMALISED, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_moments_are_those_of_all_samples():
    norm = RunningNorm(2)
    norm(SAMPLES)
    torch.testing.assert_close(norm.mean, SAMPLES.mean(0))
    torch.testing.assert_close(norm.variance(), SAMPLES.var(0))


def test_evaluation_leaves_the_moments_alone_and_state_goes_on():
    norm = RunningNorm((2,))
    norm(SAMPLES[:4])
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    normalised = norm.eval()(SAMPLES)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    torch.testing.assert_close(normalised, (SAMPLES - SAMPLES[:4].mean(0)) / SAMPLES[:4].std(0), rtol=1e-7, atol=1e-7)
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    other = RunningNorm(2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(SAMPLES[4:]), norm.train()(SAMPLES[4:]))


def test_float32_samples_have_float64_moments():
    norm = RunningNorm(1)
    x = 1e6 + torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    assert norm(x).dtype == torch.float32
    assert norm.variance().item() == pytest.approx(x.double().var().item(), rel=1e-12)


@pytest.mark.parametrize("pieces", [7, 2])
def test_rewards(pieces):
    scale = RewardScale(gamma=0.9)
    scaled = torch.cat(
        [scale(r, e) for r, e in zip(REWARDS.tensor_split(pieces), ENDS.tensor_split(pieces), strict=True)]
    )
    torch.testing.assert_close(scaled, torch.tensor(SCALED, dtype=torch.float64), rtol=1e-10, atol=0.0)
    again = scale.eval()(REWARDS, ENDS)
    torch.testing.assert_close(again, REWARDS / scale.std())
    torch.testing.assert_close(again[-1:], scaled[-1:])


def test_bad_arguments():
    with pytest.raises(ValueError, match="eps must be at least 0, got -1"):
        RunningNorm(2, eps=-1.0)
    with pytest.raises(ValueError, match=r"x must have the shape \[..., \(2,\)\], got \(4, 3\)"):
        RunningNorm(2)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 2"):
        RewardScale(gamma=2.0)
    with pytest.raises(ValueError, match=r"one shape, \[\] or \[N\], got \(2,\) and \(3,\)"):
        RewardScale()(torch.zeros(2), torch.zeros(3))
