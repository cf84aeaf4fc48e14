import pytest
import torch

from leyden.nn import adaptive_noise

HIDDEN = torch.tensor(
    [
        [[0.5, -1.0, 2.0, 0.1], [1.5, 0.3, -0.7, 0.2]],
        [[0.0, 0.4, 0.9, -3.0], [0.25, 0.5, 0.75, 1.0]],
    ],
    dtype=torch.float64,
)
NORMAL = torch.tensor(
    [
        [[1.0, -0.5, 2.0, 0.25], [0.5, 1.0, -1.5, 0.75]],
        [[-1.0, 0.3, 0.6, 2.0], [1.0, 1.0, -1.0, -1.0]],
    ],
    dtype=torch.float64,
)
LOGITS = torch.tensor([[[1.0, 0.0, -1.0], [2.0, 2.0, -3.0]], [[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]], dtype=torch.float64)
# Printed by `adaptive_noise_injection` of akhadangi/NoiseFiT, commit 48c61c8, with `randn_like` giving NORMAL; it holds
# a factor of 1 in float32.
NOISE = [
    *(0.3299374358617764, -0.13848420906105585, 0.45352534985791904, 0.09115929193495229),
    *(0.007365791098200347, 0.04890998843144112, -0.03296527537383798, 0.040540382073386866),
    *(-0.6000000238418579, 0.16287078243596298, 0.28746601187542387, 0.5668409486365356),  # the factor is capped
    *(0.07316119549222999, 0.08085559324754532, -0.07316119549222999, -0.06619901370910775),
]
GRADIENT = [  # of the sum of squares of the result
    *(12.435362993119295, -3.706112778134411, 6.074084354201464, -10.131058831999162),
    *(2.562650626311644, 2.6721936880703354, -1.0426086320367753, -1.4645339098868226),
    *(7.198324889294455, -6.944288496030681, 1.6403469786284228, -4.4600279336800694),
    *(1.284949409004515, 0.6664066198370414, 1.3351945875820552, 1.7427625426532634),
]
NOISE_OF_LOGITS = [  # with beta 0.5
    *(0.1673162299530364, -0.034873967058137056, 0.05131779034510986, 0.06896437060892963),
    *(4.602415278509575e-05, 0.03713270885205572, -0.001020204736407404, 0.045915885614618124),
    *(-0.35999893430831176, 0.06550519921780273, 0.07012492258731629, 0.016932885635655648),
    *(0.0492720311172985, 0.0812356832828095, -0.0492720311172985, -0.029885057308772223),
]


def test_the_authors_numbers():
    hidden = HIDDEN.clone().requires_grad_()
    noisy = adaptive_noise(hidden, base_std=0.3, normal=NORMAL)
    assert (noisy - hidden).flatten().tolist() == pytest.approx(NOISE, rel=1e-6)
    [gradient] = torch.autograd.grad(noisy.square().sum(), hidden)
    assert gradient.flatten().tolist() == pytest.approx(GRADIENT, rel=1e-6)


def test_the_authors_numbers_with_logits():
    noisy = adaptive_noise(HIDDEN, base_std=0.3, beta=0.5, logits=LOGITS, normal=NORMAL)
    assert (noisy - HIDDEN).flatten().tolist() == pytest.approx(NOISE_OF_LOGITS, rel=1e-6)


def test_no_noise_without_base_std():
    assert torch.equal(adaptive_noise(HIDDEN, base_std=0.0), HIDDEN)


def test_the_noise_has_mean_zero():
    torch.manual_seed(0)
    hidden = HIDDEN[0, :1].expand(20_000, 4)
    noise = adaptive_noise(hidden, base_std=1.0) - hidden
    assert (noise.mean(0).abs() < 4.0 * noise.std(0) / 20_000**0.5).all()
    # sizes of a token's numbers go as exp(-0.1 distance / mad), here with distances 0.4, 1.1, 1.9, 0 and mad 0.4
    shares = noise.std(0) / noise.std(0)[3]
    expected = torch.tensor([0.4, 1.1, 1.9, 0.0], dtype=torch.float64).div(-10.0 * 0.4).exp()
    torch.testing.assert_close(shares, expected, rtol=0.03, atol=0.0)


def test_equal_numbers_get_no_noise_and_finite_gradients():
    hidden = torch.zeros(3, 4, requires_grad=True)
    noisy = adaptive_noise(hidden, base_std=1.0)
    assert torch.equal(noisy, hidden)
    noisy.square().sum().backward()
    assert hidden.grad.isfinite().all()


def test_half_precision_keeps_its_dtype():
    noisy = adaptive_noise(HIDDEN.to(torch.bfloat16), base_std=0.3, normal=NORMAL.float())
    assert noisy.dtype == torch.bfloat16
    expected = adaptive_noise(HIDDEN, base_std=0.3, normal=NORMAL)
    torch.testing.assert_close(noisy.double(), expected, rtol=0.03, atol=0.01)


@pytest.mark.parametrize(
    ("hidden", "normal", "match"),
    [
        (torch.zeros(4), None, r"hidden must have the shape \[..., D\] with D >= 2, got \(4,\)"),
        (torch.zeros(4, 1), None, r"D >= 2, got \(4, 1\)"),
        (torch.zeros(4, 3), torch.zeros(4, 1), r"normal must have the shape of hidden, \(4, 3\), got \(4, 1\)"),
    ],
)
def test_bad_input(hidden, normal, match):
    with pytest.raises(ValueError, match=match):
        adaptive_noise(hidden, base_std=1.0, normal=normal)
