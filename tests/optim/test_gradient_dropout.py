import pytest
import torch

from leyden.optim import gradient_dropout

GRAD = torch.tensor([0.5, -0.2, 0.3, -0.4, 1.0, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, -0.5, -0.3, 0.1, -3.0, 0.0], dtype=torch.float64)
UNIFORM = torch.tensor([0.9, 0.99, 0.45, 0.7, 0.3, 0.999], dtype=torch.float64)


@pytest.mark.parametrize(("strength", "fifth"), [(1.0, 0.0), (0.3, 0.7), (0.0, 1.0)])
def test_equals_the_authors_code(strength, fifth):
    """What graddrop_backward_and_update of wuw2019/R-AMT (07f8d2c) makes of these; its P are 1, 1, .5, .8, .25, 1."""
    dropped = gradient_dropout(GRAD, REFERENCE, UNIFORM, strength=strength)
    assert dropped.tolist() == pytest.approx([0.5, -0.2, 0.3, -0.4, fifth, 0.1], rel=1e-6)


def test_shares_that_stay():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20000, generator=generator)
    grad = torch.randn(20000, generator=generator)
    for reference, share in ((grad, 1.0), (0.0 * grad, 1.0), (-grad, 0.5), (-3.0 * grad, 0.25), (-0.25 * grad, 0.8)):
        stays = gradient_dropout(grad, reference, uniform) != 0.0
        assert stays.float().mean().item() == pytest.approx(share, abs=0.01)
        assert torch.equal(gradient_dropout(grad, reference, uniform)[stays], grad[stays])  # not rescaled


def test_numbers_are_drawn_if_none_are_given():
    torch.manual_seed(0)
    grad = torch.ones(1000)
    kept = gradient_dropout(grad, -grad)
    assert 400 < kept.sum() < 600
    assert not torch.equal(gradient_dropout(grad, -grad), kept)
    assert torch.equal(grad, torch.ones(1000))


def test_bad_input():
    with pytest.raises(ValueError, match=r"reference must have the shape of grad, \(6,\), got \(3,\)"):
        gradient_dropout(GRAD, REFERENCE[:3])
    with pytest.raises(ValueError, match=r"uniform must have the shape of grad, \(6,\), got \(3,\)"):
        gradient_dropout(GRAD, REFERENCE, UNIFORM[:3])
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got 1.5"):
        gradient_dropout(GRAD, REFERENCE, strength=1.5)
