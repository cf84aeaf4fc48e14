"""Numbers of the authors' code: github.com/Westlake-AI/openmixup at 37e1372, ``soft_mix_cross_entropy`` of
openmixup/models/losses/cross_entropy_loss.py, run in float64 with the weights that ``ClsMixupHead`` gives it for
eta 0.1, mode "more", threshold 0.5 and power 0.5, and ``avg_factor=4``. The first row mixes a smaller class number with
a larger one, for which that code is right."""

import pytest
import torch
from torch.nn import functional

from leyden.losses import DecoupledMixupLoss, decoupled_cross_entropy, decoupled_mixup_loss

LOGITS = torch.tensor(
    [[2.0, -1.0, 0.5, 0.0], [0.0, 0.3, -0.2, 1.5], [-1.0, 4.0, 0.0, 2.0], [1.0, 1.0, -2.0, 0.5]], dtype=torch.float64
)
FIRST, SECOND = torch.tensor([0, 3, 1, 2]), torch.tensor([2, 0, 1, 1])
VALUES = {0.7: 1.3358082888504619, 0.2: 1.3114159437296187}
GRADIENTS = {
    0.7: [
        [-0.0007422868182965343, 0.009717151928347868, -0.035388822621255075, 0.026413957511203776],
        [-0.04232145166749552, 0.04835701120160341, 0.02933000990583973, -0.03536556943994759],
        [0.001451657107881767, -0.034554982685557206, 0.003946013137508419, 0.02915731244016704],
        [0.10674356152983142, 0.019115247343040695, -0.19060205166763688, 0.06474324279476472],
    ],
    0.2: [
        [0.12752498072154356, 0.011565370197516947, -0.17052828656637264, 0.031437935647312114],
        [-0.1826251493541024, 0.053637355712349996, 0.032532700745452836, 0.0964550928962996],
        [0.001451657107881767, -0.034554982685557206, 0.003946013137508419, 0.02915731244016704],
        [0.10269396084931619, -0.11966671892568173, -0.04531427774607361, 0.062287035822439094],
    ],
}


def one_hot(target):
    return functional.one_hot(target, 4).double()


@pytest.mark.parametrize("lam", VALUES)
@pytest.mark.parametrize("form", [lambda t: t, one_hot], ids=["hard", "soft"])
def test_numbers_of_the_authors_code(lam, form):
    logits = LOGITS.clone().requires_grad_()
    loss = decoupled_mixup_loss(logits, form(FIRST), form(SECOND), lam)
    assert loss.item() == pytest.approx(VALUES[lam], rel=1e-12)
    [gradient] = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor(GRADIENTS[lam], dtype=torch.float64), rtol=0, atol=1e-14)
    assert DecoupledMixupLoss()(LOGITS, form(FIRST), form(SECOND), lam).item() == pytest.approx(loss.item(), rel=1e-12)


def test_regularizer_by_hand():
    # softmax without class 2: exp(0) / (exp(0) + exp(ln 3)) = 1/4; then without class 0: exp(ln 5) / (exp(ln 5) + 3)
    logits = torch.tensor([[0.0, 3.0, 5.0]], dtype=torch.float64)
    logits[0, 1:].log_()
    a, b = torch.tensor([0]), torch.tensor([2])
    first = decoupled_cross_entropy(logits, a, b, 0.64, eta=0.5, power=0.5)
    assert first.item() == pytest.approx(0.5 * 0.8 * 1.3862943611198906, rel=1e-12)
    second = decoupled_cross_entropy(logits, a, b, 0.19, eta=0.5, power=2.0)
    assert second.item() == pytest.approx(0.5 * 0.81**2 * 0.47000362924573563, rel=1e-12)
    tie = decoupled_cross_entropy(logits, a, b, 0.5, eta=1.0, power=0.0)
    assert tie.item() == pytest.approx(1.3862943611198906, rel=1e-12)
    moved = decoupled_cross_entropy(logits, a, b, 0.64, eta=1.0, power=0.0, threshold=0.7)
    assert moved.item() == pytest.approx(0.47000362924573563, rel=1e-12)


def test_the_order_of_two_samples_does_not_count():
    # where the first row has the larger number first, the authors' code weighs the wrong side
    ways = [decoupled_mixup_loss(LOGITS, *pair) for pair in ((FIRST, SECOND, 0.7), (SECOND, FIRST, 0.3))]
    assert ways[0].item() == pytest.approx(ways[1].item(), rel=1e-12)
    assert ways[0].item() == pytest.approx(VALUES[0.7], rel=1e-12)


def test_a_share_per_sample():
    lam = torch.tensor([0.7, 0.2, 0.2, 0.7], dtype=torch.float64)
    rows = decoupled_mixup_loss(LOGITS, FIRST, SECOND, lam, reduction="none")
    for number, share in enumerate(lam.tolist()):
        alone = decoupled_mixup_loss(LOGITS[[number]], FIRST[[number]], SECOND[[number]], share)
        assert rows[number].item() == pytest.approx(alone.item(), rel=1e-12)


@pytest.mark.parametrize(("eta", "second"), [(0.0, SECOND), (3.0, FIRST)], ids=["no weight", "same class"])
def test_where_it_is_mixup_cross_entropy(eta, second):
    mixed = 0.7 * one_hot(FIRST) + 0.3 * one_hot(second)
    loss = decoupled_mixup_loss(LOGITS, FIRST, second, 0.7, eta=eta)
    assert loss.item() == pytest.approx(functional.cross_entropy(LOGITS, mixed).item(), rel=1e-12)


def test_the_removed_class_gets_no_gradient_and_a_shift_changes_nothing():
    logits = LOGITS.clone().requires_grad_()
    rows = decoupled_cross_entropy(logits, FIRST, SECOND, 0.7, reduction="none")
    [gradient] = torch.autograd.grad(rows.sum(), logits)
    assert gradient.gather(1, SECOND[:, None]).flatten().tolist() == [0.0] * 4
    assert gradient[2].tolist() == [0.0] * 4  # the same class twice
    assert gradient.gather(1, FIRST[:, None]).flatten()[[0, 1, 3]].max() < 0.0
    shifted = decoupled_cross_entropy(LOGITS + torch.tensor([[5.0], [-9.0], [0.5], [30.0]]), FIRST, SECOND, 0.7)
    assert shifted.item() == pytest.approx(rows.mean().item(), rel=1e-12)


def test_two_classes_leave_nothing_to_ask_for():
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    loss = decoupled_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1, 0]), 0.7, eta=5.0)
    [gradient] = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert not gradient.any()


def test_gradcheck():
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decoupled_mixup_loss(x, FIRST, SECOND, 0.4, reduction="none"), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = LOGITS.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = decoupled_mixup_loss(logits, FIRST, SECOND, torch.tensor(0.7))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(decoupled_mixup_loss(logits.double(), FIRST, SECOND, 0.7).item(), rel=1e-6)


def test_reductions():
    rows = decoupled_mixup_loss(LOGITS, FIRST, SECOND, 0.7, reduction="none")
    assert rows.shape == (4,)
    assert rows.mean().item() == pytest.approx(VALUES[0.7])
    assert decoupled_mixup_loss(LOGITS, FIRST, SECOND, 0.7, reduction="sum").item() == pytest.approx(4 * VALUES[0.7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": LOGITS[:, :1]}, r"logits must be \[N, C\] with 2 or more classes, got shape \(4, 1\)"),
        ({"logits": LOGITS[0]}, r"logits must be \[N, C\] .*, got shape \(4,\)"),
        ({"target": FIRST[:3]}, r"target must be int64 \[4\] or .*, got torch.int64 \(3,\)"),
        ({"target2": one_hot(SECOND)[:, :2]}, r"target2 must be .* \[4, 4\], got torch.float64 \(4, 2\)"),
        ({"lam": torch.rand(3)}, r"lam must be a number or \[4\] as the samples, got shape \(3,\)"),
        ({"eta": -1.0}, "eta and power must be at least 0, got -1.0 and 0.5"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"reduction": "max"}, "reduction must be"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        decoupled_mixup_loss(**{"logits": LOGITS, "target": FIRST, "target2": SECOND, "lam": 0.7, **arguments})
    assert "\n" not in str(caught.value)
