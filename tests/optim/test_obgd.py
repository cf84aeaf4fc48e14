import io
import math
from functools import partial

import pytest
import torch
from torch.nn import Parameter

from leyden.optim import AdaptiveObGD, ObGD

STEPS = 12
K = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)


def start(dtype=torch.float64):
    tensors = [[[0.5, -1.0, 0.25], [2.0, -0.125, 1.5]], [0.5, -1.0, 0.25]]
    return [torch.tensor(values, dtype=dtype) for values in tensors]


def gradients(t):
    return [torch.sin(1.7 * t * K) + 0.1 * K, torch.cos(1.3 * t * K[0])]


def train(optimizer, params, steps):
    for t in steps:
        for p, grad in zip(params, gradients(t), strict=True):
            p.grad = grad.to(p.dtype)
        optimizer.step(delta=3.0 * math.sin(t), reset=t == 5)
    return [p.detach() for p in params]


# ObGD and AdaptiveObGD of mohmdelsayed/streaming-drl at 407dca7 on float64, with the steps of `train`
MAKES = [
    partial(ObGD, lr=0.7, gamma=0.9, lamda=0.5, kappa=1.5),
    partial(ObGD, lr=0.02, gamma=0.9, lamda=0.5, kappa=1.5),
    partial(AdaptiveObGD, lr=0.7, gamma=0.9, lamda=0.5, kappa=1.5, beta2=0.95),
]
EXPECTED = [
    [
        [[0.33164229320475086, -0.8507514692666313, 0.6743583032612129],
         [1.9644487729252098, -0.1113002901042525, 1.5190017126964677]],
        [0.9267513240398657, -0.994577646655239, 0.34839507274933734],
    ],
    [
        [[0.4684557328035172, -0.9868221821839146, 0.5222059245201777],
         [2.0449960701920014, -0.10448798889148032, 1.554604320690935]],
        [0.7035773265637448, -0.9622620749688592, 0.28941563248054974],
    ],
    [
        [[0.38761935142074255, -0.7441980032587386, 0.6622343996029568],
         [1.937345249169014, -0.06478632496592976, 1.6025215761442575]],
        [0.9913706019221865, -1.0138622941381124, 0.36564953366675385],
    ],
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), list(zip(MAKES, EXPECTED, strict=True)))
@pytest.mark.parametrize("grouped", [False, True])
def test_numbers_of_the_authors_code(make, expected, grouped):
    params = [Parameter(p) for p in start()]
    optimizer = make([{"params": [p]} for p in params] if grouped else params)  # the bound is over all groups
    for p, values in zip(train(optimizer, params, range(1, 1 + STEPS)), expected, strict=True):
        torch.testing.assert_close(p, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_without_a_bound_it_is_sgd_with_traces():
    params, values = [Parameter(p) for p in start()], start()
    optimizer = ObGD(params, lr=0.3, gamma=0.9, lamda=0.5, kappa=0.0)
    train(optimizer, params, range(1, 4))
    traces = [torch.zeros_like(value) for value in values]
    for t in range(1, 4):
        traces = [0.45 * trace + grad for trace, grad in zip(traces, gradients(t), strict=True)]
        values = [v - 0.3 * 3.0 * math.sin(t) * trace for v, trace in zip(values, traces, strict=True)]
    torch.testing.assert_close([p.detach() for p in params], values, rtol=1e-12, atol=1e-13)


def test_lamda_0_has_no_trace():
    params = [Parameter(p) for p in start()]
    optimizer = ObGD(params, lr=1e-3, lamda=0.0)
    train(optimizer, params, range(1, 4))
    for p, grad in zip(params, gradients(3), strict=True):
        torch.testing.assert_close(optimizer.state[p]["eligibility_trace"], grad)


@pytest.mark.parametrize("delta", [-7.0, 1.0, 3.0])
def test_the_movement_is_bounded(delta):
    params = [Parameter(p) for p in start()]
    optimizer = ObGD(params, lr=1.0, kappa=2.0)
    for p, grad in zip(params, gradients(1), strict=True):
        p.grad = grad
    optimizer.step(delta=delta)
    moved = sum((p - before).abs().sum() for p, before in zip(params, start(), strict=True))
    assert moved.item() == pytest.approx(0.5)  # |delta| / (kappa * max(|delta|, 1))


def test_numbers_may_be_tensors_and_the_end_of_an_episode_clears_the_traces():
    ends = []
    for kind in (lambda x: x, torch.tensor, lambda x: torch.tensor([x])):
        params = [Parameter(p) for p in start()]
        optimizer = ObGD(params)
        for t in range(1, 5):
            for p, grad in zip(params, gradients(t), strict=True):
                p.grad = grad
            optimizer.step(delta=kind(0.5 * t), reset=kind(t == 4))
        assert not any(optimizer.state[p]["eligibility_trace"].any() for p in params)
        ends.append(params)
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


def test_a_parameter_without_gradient_keeps_a_fading_trace():
    params = [Parameter(p) for p in start()]
    optimizer = ObGD(params, gamma=0.5, lamda=0.5)
    train(optimizer, params, range(1, 2))
    before = params[0].detach().clone()
    params[0].grad = None
    optimizer.step(delta=1.0)
    torch.testing.assert_close(optimizer.state[params[0]]["eligibility_trace"], 0.25 * gradients(1)[0])
    assert not torch.equal(params[0], before)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_goes_on_with_the_same_bits(make, dtype):
    params = [Parameter(p) for p in start(dtype)]
    whole = train(make(params), params, range(1, 1 + STEPS))
    for cut in (1, 4, 5, 9):
        params = [Parameter(p) for p in start(dtype)]
        optimizer = make(params)
        train(optimizer, params, range(1, 1 + cut))
        file = io.BytesIO()
        torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        params = [Parameter(p) for p in saved["params"]]
        optimizer = make(params)
        optimizer.load_state_dict(saved["optimizer"])
        assert all(map(torch.equal, train(optimizer, params, range(1 + cut, 1 + STEPS)), whole))


def test_nothing_to_do():
    params = [Parameter(p) for p in start()]
    ObGD(params).step(delta=1.0)
    assert all(map(torch.equal, params, start()))


@pytest.mark.parametrize("name", ["lr", "kappa"])
@pytest.mark.parametrize("kind", [ObGD, AdaptiveObGD])
def test_negative_settings_are_refused(kind, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        kind(start(), **{name: -1.0})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"lamda": -0.5}, r"lamda must lie in \[0, 1\], got -0.5"),
        ({"beta2": 1.0}, r"beta2 must lie in \[0, 1\), got 1.0"),
        ({"eps": -1.0}, "eps must be at least 0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        AdaptiveObGD(start(), **arguments)


def test_an_error_per_sample_is_refused():
    params = [Parameter(p) for p in start()]
    with pytest.raises(ValueError, match=r"delta must be one number, got shape \(2,\)"):
        ObGD(params).step(delta=torch.zeros(2))
