import pytest
import torch
from torch.testing import assert_close

from leyden.losses import MaskedL1SSIMLoss, SoftMaskLoss, masked_l1_ssim_loss, segment_residual_mask, soft_mask_loss


def images():
    i = torch.arange(2 * 3 * 13 * 9, dtype=torch.float64)
    x = ((i * 37) % 101 / 100).view(2, 3, 13, 9)
    return x, 0.7 * x + 0.3 * ((i * 61) % 103 / 102).view(2, 3, 13, 9)


def test_values_of_the_authors_code():
    # l1_loss, ssim and _masked_loss of steveli88/AsymGS (utils/loss_utils.py, asym_gsgs.py), windows in float64
    pred, target = images()
    assert masked_l1_ssim_loss(pred, target, ssim_weight=1.0).item() == pytest.approx(1 - 0.9244060345588183, abs=1e-14)
    assert masked_l1_ssim_loss(pred, target, ssim_weight=0.0).item() == pytest.approx(0.10172674710910005, abs=1e-14)
    assert masked_l1_ssim_loss(pred, target).item() == pytest.approx(0.09650019077551639, abs=1e-14)


def gradient(pred, target, mask=None):
    pred = pred.clone().requires_grad_()
    loss = masked_l1_ssim_loss(pred, target, mask)
    loss.backward()
    return loss.detach(), pred.grad


def test_a_mask_scales_the_gradient_and_leaves_the_value():
    pred, target = images()
    loss, whole = gradient(pred, target)
    mask = torch.linspace(0, 1, 2 * 13 * 9, dtype=torch.float64).view(2, 1, 13, 9).requires_grad_()
    for each in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
        value, masked = gradient(pred, target, each)
        assert_close(value, loss)
        assert_close(masked, whole * each.detach())
    assert mask.grad is None
    assert_close(
        MaskedL1SSIMLoss(ssim_weight=0.5)(pred, target, mask), masked_l1_ssim_loss(pred, target, ssim_weight=0.5)
    )


def test_same_images_have_no_loss_and_half_precision_is_computed_in_float32():
    pred, target = (x.to(torch.bfloat16) for x in images())
    assert masked_l1_ssim_loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_l1_ssim_loss(pred, target)
    assert_close(loss, masked_l1_ssim_loss(pred.float(), target.float()))


def test_segments_with_many_large_residuals_are_distrusted():
    # 20 pixels, 5 of them above the quantile 0.75; the first segment has 2 of 2, the second 1 of 4, the third 1 of 5
    residual = torch.zeros(4, 5)
    residual[0, :2], residual[1, 0], residual[2, 0], residual[3, 4] = 1.0, 1.0, 1.0, 1.0
    segments = torch.zeros(3, 4, 5, dtype=torch.bool)
    segments[0, 0, :2] = True
    segments[1, 1, :4] = True  # as dense as the image: trusted
    segments[2, 2] = True
    expected = torch.ones(4, 5)
    expected[0, :2] = 0.0
    assert torch.equal(segment_residual_mask(residual[None], segments, quantiles=[0.7]), expected)
    assert torch.equal(segment_residual_mask(7.0 * residual[None], segments, quantiles=[0.7]), expected)
    assert torch.equal(segment_residual_mask(residual[None], segments[:0], quantiles=[0.7]), torch.ones(4, 5))


def test_large_is_what_exceeds_the_quantile_of_every_map():
    first, second = torch.zeros(2, 2, 4)
    first[0], second[:, 0] = 1.0, 1.0  # both are large in one pixel
    halves = torch.zeros(2, 2, 4, dtype=torch.bool)
    halves[0, 0], halves[1, 1] = True, True
    one, both = torch.stack([first, first]), torch.stack([first, second])
    expected = torch.tensor([[0.0] * 4, [1.0] * 4])
    assert torch.equal(segment_residual_mask(one, halves, quantiles=[0.4, 0.4]), expected)
    assert torch.equal(segment_residual_mask(both, halves, quantiles=[0.4, 0.4]), expected)
    second[0] = 0.0
    assert torch.equal(
        segment_residual_mask(torch.stack([first, second]), halves, quantiles=[0.4, 0.4]), torch.ones(2, 4)
    )


def test_masks_of_a_batch_are_those_of_its_images():
    generator = torch.Generator().manual_seed(0)
    residuals = torch.rand(3, 2, 8, 9, generator=generator)
    segments = torch.rand(3, 5, 8, 9, generator=generator) > 0.7
    masks = segment_residual_mask(residuals, segments, quantiles=[0.6, 0.5])
    each = [segment_residual_mask(*image, quantiles=[0.6, 0.5]) for image in zip(residuals, segments, strict=True)]
    assert torch.equal(masks, torch.stack(each))
    assert 0.0 < masks.mean() < 1.0
    assert segment_residual_mask(residuals.half(), segments).dtype == torch.float16


def test_pixels_are_counted_exactly_under_autocast():
    # 258 of 515 are large, 50.1 %; in the segment 257 of 512, 50.2 %: bfloat16 would make 256 of the 257
    place = torch.arange(515).view(1, 1, 515)
    segment = (place >= 1) & (place <= 512)
    with torch.autocast("cpu", torch.bfloat16):
        mask = segment_residual_mask((place < 258).float(), segment, quantiles=[0.4])
    assert torch.equal(mask, (~segment[0]).float())


def test_soft_mask_loss_by_hand():
    residual = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).view(1, 1, 2, 2).requires_grad_()
    mask = torch.tensor([[0.5, 0.5], [0.5, 1.0]]).view(1, 1, 2, 2).requires_grad_()
    loss = soft_mask_loss(mask, residual)  # wanted: 1, 0.75, 0.5, 0
    assert loss.item() == pytest.approx((0.5 + 0.25 + 0.0 + 1.0) / 4)
    loss.backward()
    assert residual.grad is None
    assert_close(mask.grad.flatten(), torch.tensor([-0.25, -0.25, 0.0, 0.25]))
    assert_close(soft_mask_loss(mask, 3.0 * residual), loss)
    assert_close(SoftMaskLoss()(mask, residual), loss)


def test_soft_mask_loss_takes_the_extremes_of_each_image():
    residual = torch.stack([torch.arange(4.0).view(1, 2, 2), 10.0 * torch.arange(4.0).view(1, 2, 2)])
    mask = 1.0 - torch.stack([residual[0] / 3, residual[0] / 3])
    assert soft_mask_loss(mask, residual).item() == pytest.approx(0.0, abs=1e-6)
    constant = torch.full((1, 1, 2, 2), 7.0)
    assert soft_mask_loss(torch.ones(1, 1, 2, 2), constant).item() == 0.0  # nothing stands out: all is trusted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked_l1_ssim_loss(torch.zeros(2, 3), torch.zeros(2, 3)), r"pred and target .* got \(2, 3\)"),
        (lambda: masked_l1_ssim_loss(*images(), torch.ones(2, 13, 9)), r"mask must have shape \(2, 1, 13, 9\)"),
        (lambda: masked_l1_ssim_loss(*images(), ssim_weight=2.0), r"ssim_weight must lie in \[0, 1\], got 2.0"),
        (lambda: segment_residual_mask(torch.zeros(1, 4, 4), torch.ones(1, 4, 5).bool()), "residuals and segments"),
        (lambda: segment_residual_mask(torch.zeros(4, 4), torch.ones(4, 4).bool()), "residuals and segments"),
        (
            lambda: segment_residual_mask(torch.zeros(3, 4, 4), torch.ones(1, 4, 4).bool()),
            "quantiles must be 3 or more",
        ),
        (
            lambda: segment_residual_mask(torch.zeros(1, 4, 4), torch.ones(1, 4, 4).bool(), quantiles=[95]),
            r"numbers in \[0, 1\], one per map, got \[95\]",
        ),
        (lambda: soft_mask_loss(torch.ones(1, 1, 4, 4), torch.ones(1, 3, 4, 4)), "mask and residual"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
