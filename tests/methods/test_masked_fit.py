from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.testing import assert_close

from leyden.core import MethodCallback
from leyden.data import Digits, OccludedPhoto
from leyden.losses import masked_l1_ssim_loss, segment_residual_mask, soft_mask_loss
from leyden.methods import DualPeers, MaskedFit
from leyden.nn import GaussianSplat2d, SoftMasks

VIEWS = 8
SIZE = 32, 48
ADAM = partial(torch.optim.Adam, lr=0.02)


def splat(seed=0):
    torch.manual_seed(seed)
    return GaussianSplat2d(12, *SIZE)


class Recorder(MethodCallback):
    """Notes what each step saw, and its terms."""

    def __init__(self):
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        masks = method.attached["soft_masks"].logits.detach().clone() if "soft_masks" in method.attached else None
        values = {name: term.detach() for name, term in terms.items()}
        self.steps.append((batch, outputs.logits.detach(), outputs.extra.get("second"), masks, values))
        return terms


def fit(make_trainer, method, *callbacks, data=None, **options):
    trainer = make_trainer(*callbacks, **{"max_epochs": 2} | options)
    trainer.fit(method, data or OccludedPhoto(num_views=VIEWS, num_occluders=3, batch_size=4, seed=0))
    return trainer


def residual(batch, pred):
    return (pred - batch["target"]).abs().mean(1, keepdim=True)


def segment_masks(batch, pred, quantile=0.95):
    each = zip(residual(batch, pred), batch["segments"], strict=True)
    return torch.stack([segment_residual_mask(*image, quantiles=[quantile]) for image in each]).unsqueeze(1)


@pytest.mark.parametrize("kind", ["none", "segments", "soft", "both"])
def test_terms_by_hand(kind, make_trainer):
    recorder = Recorder()
    soft = SoftMasks(VIEWS, *SIZE) if kind in ("soft", "both") else None
    method = MaskedFit(
        splat(), segment_masks=kind in ("segments", "both"), soft_masks=soft, quantile=0.9, optimizer=ADAM
    )
    fit(make_trainer, method, recorder)
    assert len(recorder.steps) == 4
    for number, (batch, pred, _, logits, terms) in enumerate(recorder.steps):
        assert terms.keys() == ({"task", "mask"} if soft else {"task"})
        assert_close(terms["task"], masked_l1_ssim_loss(pred, batch["target"]))  # masks change the gradient alone
        if soft:
            masks = torch.sigmoid(8.0 * logits[batch["index"]])
            assert_close(terms["mask"], soft_mask_loss(masks, residual(batch, pred)))
            if number == 3:
                assert masks.std() > 0.01  # they have learned


def gradient_of_the_image(method, batch):
    pred = (0.5 * torch.ones(VIEWS, 3, *SIZE)).requires_grad_()
    outputs = method.compute(batch)
    outputs.logits = pred
    [gradient] = torch.autograd.grad(method.loss_terms(batch, outputs)["task"], pred)
    return gradient


def test_masks_scale_the_gradient_and_take_turns(make_trainer):
    batch = OccludedPhoto(num_views=VIEWS, seed=0).dataset("train").tensors | {"index": torch.arange(VIEWS)}
    plain = gradient_of_the_image(MaskedFit(splat()), batch)
    soft = SoftMasks(VIEWS, *SIZE)
    torch.nn.init.uniform_(soft.logits, -0.2, 0.2)
    method = MaskedFit(splat(), segment_masks=True, soft_masks=soft, optimizer=ADAM)
    kept = soft(batch["index"]).detach()
    assert_close(gradient_of_the_image(method, batch), plain * kept)
    hard = segment_masks(batch, torch.full((VIEWS, 3, *SIZE), 0.5))
    assert 0.0 < hard.mean() < 1.0
    only = MaskedFit(splat(), segment_masks=True)
    assert_close(gradient_of_the_image(only, batch), plain * hard)

    turns = []

    class Turns(MethodCallback):
        def loss_terms(self, method, batch, outputs, terms):
            turns.append((method.global_step, "hard" if calls else "soft"))
            calls.clear()
            return terms

    calls = []
    segment_mask = method.segment_mask
    method.segment_mask = lambda *args: calls.append(1) or segment_mask(*args)
    fit(make_trainer, method, Turns(), max_epochs=1, accumulate_grad_batches=2)
    assert turns == [(0, "soft"), (0, "soft"), (1, "hard"), (1, "hard")]


def peers(**options):
    soft = SoftMasks(VIEWS, *SIZE)
    return DualPeers(splat(0), splat(1), soft_masks=soft, optimizer=ADAM, **options)


def test_terms_of_two_peers_by_hand(make_trainer):
    recorder = Recorder()
    fit(make_trainer, peers(consistency_weight=0.3, warmup_steps=2), recorder)
    assert len(recorder.steps) == 4
    for number, (batch, first, second, logits, terms) in enumerate(recorder.steps):
        second = second.detach()
        assert_close(terms["task"], masked_l1_ssim_loss(first, batch["target"]))
        assert_close(terms["second_task"], masked_l1_ssim_loss(second, batch["target"]))
        masks = torch.sigmoid(8.0 * logits[batch["index"]])
        assert_close(terms["mask"], soft_mask_loss(masks, residual(batch, second)))
        assert ("consistency" in terms) == (number >= 2)
        if number >= 2:
            assert_close(terms["consistency"], 2 * 0.3 * (first - second).abs().mean())


def test_consistency_pulls_both_peers(make_trainer):
    method = peers(warmup_steps=0)
    batch = OccludedPhoto(num_views=VIEWS, seed=0).dataset("train").tensors | {"index": torch.arange(VIEWS)}
    method.loss_terms(batch, method.compute(batch))["consistency"].backward()
    first, second = method.network.color.grad, method.attached["second_network"].color.grad
    assert first.abs().min() > 0.0
    assert second.abs().min() > 0.0
    method.attached["second_network"].load_state_dict(method.network.state_dict())
    assert method.loss_terms(batch, method.compute(batch))["consistency"] == 0.0


def test_the_first_peer_is_evaluated_without_masks(make_trainer):
    method = peers()
    data = OccludedPhoto(num_views=VIEWS, batch_size=4, seed=0)
    trainer = fit(make_trainer, method, data=data, max_epochs=1)
    [scores] = trainer.test(method, data, verbose=False)
    clean = data.dataset("test").tensors["target"]
    image = method.network(clean).detach()
    assert scores["test/loss"] == pytest.approx(masked_l1_ssim_loss(image, clean).item())
    assert scores["test/mae"] == pytest.approx((image - clean).abs().mean().item())
    [predicted] = trainer.predict(method, data)
    assert torch.equal(predicted["output"], image)


def test_masks_of_all_images_are_needed(make_trainer):
    method = MaskedFit(splat(), soft_masks=SoftMasks(VIEWS - 1, *SIZE), optimizer=ADAM)
    with pytest.raises(MisconfigurationException, match="soft_masks has 7 masks for 8 training images"):
        fit(make_trainer, method)


def test_data_without_segments(make_trainer):
    data = Digits(batch_size=4, num_train=8)
    with pytest.raises(ValueError, match=r"MaskedFit needs the batch keys \['segments'\]"):
        fit(make_trainer, MaskedFit(splat(), segment_masks=True, optimizer=ADAM), data=data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedFit(splat(), quantile=95), r"quantile must lie in \[0, 1\], got 95"),
        (lambda: peers(consistency_weight=-1.0), "consistency_weight must be at least 0, got -1.0"),
        (lambda: peers(warmup_steps=-1), "warmup_steps must be at least 0, got -1"),
        (lambda: DualPeers(*[splat()] * 2, soft_masks=SoftMasks(1, *SIZE)), "second_network must be another one"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
