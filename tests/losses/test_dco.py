"""Numbers of the authors' code: allanraventos/refine at 31a9e6e, ``f`` and ``custom_loss_function2`` of
refine/training/loss_functions.py in float64, whose labels are one token ahead of the logits that predict them."""

import pytest
import torch
from torch.nn import functional

from leyden.losses import DCOLoss, answer_nll, dco_factor, dco_loss

P = torch.tensor([0.05, 0.1, 0.3, 0.7, 0.99], dtype=torch.float64)
FACTORS = {
    2: [0.974358974358974, 0.947368421052632, 0.8235294117647058, 0.4615384615384616, 0.01980198019801982],
    8: [0.8299223850910545, 0.6718445833469924, 0.20974150009488482, 0.001224800359151565, 7.92000000000005e-14],
    64: [
        0.1313249564482596,
        0.008394027969191531,
        3.345628766494937e-09,
        5.127634504970199e-32,
        6.336000000000354e-125,
    ],
}
LOGITS = (2.0 * torch.arange(24, dtype=torch.float64).sin()).view(2, 4, 3)[:, :-1]  # [2, 3, 3]
TARGET = torch.tensor([[2, 0, -100], [1, 1, 2]])
LOSSES = {1: 2.343432206847205, 4: 1.9983923279836397, 16: 1.5480784224669009}
GRADIENT_16 = [
    [
        [0.0001679983819772748, 0.0009040605316000325, -0.0010720589135773072],
        [-0.00045685632213162016, 0.00027397983951687826, 0.00018287648261474225],
        [0.0, 0.0, 0.0],
    ],
    [
        [0.014293676430431846, -0.31742853345787353, 0.30313485702744164],
        [0.3472791961625002, -0.3611080655588043, 0.013828869396304072],
        [0.011857608922296604, 0.07185848347195564, -0.08371609239425228],
    ],
]
WHOLE = torch.tensor([[2, 0, 1], [1, 1, 2]])


@pytest.mark.parametrize("n", FACTORS)
def test_factor_of_the_authors_code(n):
    # at p n = 0.1 and above they take no series
    expected = torch.tensor(FACTORS[n], dtype=torch.float64)
    torch.testing.assert_close(dco_factor(P, n), expected, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("n", LOSSES)
def test_loss_of_the_authors_code_and_twin(n):
    # in the second answer p n is below 0.1 for n = 1 and 4, where their series is off by 0.01 % at most
    assert dco_loss(LOGITS, TARGET, n=n).item() == pytest.approx(LOSSES[n], rel=1e-4)
    assert torch.equal(DCOLoss(n=n)(LOGITS, TARGET), dco_loss(LOGITS, TARGET, n=n))


def test_gradient_of_the_authors_code():
    logits = LOGITS.clone().requires_grad_()
    dco_loss(logits, TARGET).backward()
    torch.testing.assert_close(logits.grad, torch.tensor(GRADIENT_16, dtype=torch.float64), rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 8, 1000])
def test_gradient_is_that_of_the_objective(n):
    logits = (0.5 * LOGITS).requires_grad_()
    p = logits.softmax(-1).gather(-1, WHOLE.unsqueeze(-1)).squeeze(-1).prod(-1)
    [expected] = torch.autograd.grad(-(1.0 - (1.0 - p) ** n).log().mean(), logits)
    [found] = torch.autograd.grad(dco_loss(logits, WHOLE, n=n), logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_one_answer_is_cross_entropy():
    """The sum over tokens, the mean over answers."""
    expected = functional.cross_entropy(LOGITS.flatten(0, 1), TARGET.flatten(), reduction="sum") / 2
    torch.testing.assert_close(dco_loss(LOGITS, TARGET, n=1), expected)


def test_factor_falls_in_p_and_n_from_one_to_zero():
    p = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    rows = torch.stack([dco_factor(p, n) for n in (1, 2, 5, 50)])
    assert (rows[0] == 1.0).all()
    assert (rows[:, 0] == 1.0).all()
    assert (rows[1:, -1] == 0.0).all()
    assert (rows.diff(dim=1) <= 0.0).all()
    assert (rows.diff(dim=0) <= 0.0).all()
    for tiny in (1e-12, 1e-300, 5e-324):
        assert dco_factor(torch.tensor(tiny, dtype=torch.float64), 64).item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_and_certain_answers_have_finite_gradients(dtype):
    logits = torch.tensor([[2000.0, 0.0], [0.0, 2000.0]], dtype=dtype, requires_grad=True)
    loss = dco_loss(logits, torch.tensor([1, 1]), reduction="none")
    assert loss.tolist() == [2000.0, 0.0]
    loss.sum().backward()
    assert logits.grad.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_soft_targets():
    logits = LOGITS[:, 0]
    hard = torch.tensor([2, 1])
    soft = functional.one_hot(hard, 3).double()
    torch.testing.assert_close(dco_loss(logits, soft, n=8), dco_loss(logits, hard, n=8))
    mixed = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(answer_nll(logits, mixed), -(mixed * logits.log_softmax(-1)).sum(-1))
    whole = functional.one_hot(WHOLE, 3).double()
    torch.testing.assert_close(dco_loss(LOGITS, whole), dco_loss(LOGITS, WHOLE))


def test_another_ignored_class():
    target = TARGET.masked_fill(TARGET == -100, 7)
    assert torch.equal(dco_loss(LOGITS, target, ignore_index=7), dco_loss(LOGITS, TARGET))


def test_half_precision_is_computed_in_float32():
    logits = LOGITS.bfloat16()
    loss = dco_loss(logits, TARGET)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(dco_loss(logits.double(), TARGET).item(), rel=1e-5)


def test_bad_input_is_refused():
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
            dco_factor(P, n)
        with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
            DCOLoss(n=n)
    for logits, target in ((LOGITS, TARGET[:, :2]), (LOGITS, TARGET[0]), (LOGITS[0, 0], TARGET[0])):
        with pytest.raises(ValueError, match=r"logits must have shape \[N, C\] or \[N, T, C\] and target the same"):
            dco_loss(logits, target)
