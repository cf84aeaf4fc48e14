import math
from functools import partial
from zlib import crc32

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.callbacks import CoLM, coreset_by_source, sparsify_by_source
from leyden.core import MethodCallback
from leyden.data import DigitMixture, Digits
from leyden.methods import Classification
from leyden.models import MLP, ViT
from leyden.plugins import CSVLogger

HEAD = {"parameter": "head.weight"}


class Recorder(MethodCallback):
    """Notes each batch, and the weights that the step has; stands before and behind what chooses."""

    def __init__(self):
        self.batches, self.weights = [], []

    def transform_batch(self, method, batch):
        self.batches.append(batch)
        self.weights.append({name: p.detach().clone() for name, p in method.named_parameters()})
        return batch


class Unlabel(MethodCallback):
    def transform_batch(self, method, batch):
        return batch | {"labeled": batch["index"] % 2 == 0}


def fit(make_trainer, *callbacks, network=None, data=None, steps=3, **options):
    torch.manual_seed(0)
    method = Classification(network or MLP(64, 10, (16,), dropout=0.2), optimizer=partial(torch.optim.Adam, lr=0.01))
    trainer = make_trainer(*callbacks, max_steps=steps, limit_val_batches=0, **options)
    trainer.fit(method, data or DigitMixture(batch_size=40, seed=0))
    return method


def losses(weights, batch):
    """Cross entropy of each sample in evaluation, from the weights alone."""
    w = {name.removeprefix("network."): p.double() for name, p in weights.items()}
    hidden = (batch["input"].double().flatten(1) @ w["body.0.weight"].T + w["body.0.bias"]).relu()
    return functional.cross_entropy(hidden @ w["head.weight"].T + w["head.bias"], batch["target"], reduction="none")


def gradients(weights, batch):
    """Of these by the weights of the head, one sample after the other."""
    weights = dict(weights) | {"network.head.weight": weights["network.head.weight"].double().requires_grad_()}
    each = losses(weights, batch)
    return torch.stack(
        [torch.autograd.grad(loss, weights["network.head.weight"], retain_graph=True)[0].flatten() for loss in each]
    )


@pytest.mark.parametrize("gradient", ["exact", "zeroth_order"])
def test_the_choice_by_hand(make_trainer, gradient):
    before, after = Recorder(), Recorder()
    colm = CoLM(0.25, [2], dim=50, gradient=gradient, **HEAD)
    fit(make_trainer, before, colm, after, precision="64-true")
    exp_avg = exp_avg_sq = torch.zeros(160, dtype=torch.float64)
    z = torch.randn(10, 16, generator=torch.Generator().manual_seed(crc32(b"CoLM"))).double().flatten()
    for step, (batch, weights, kept) in enumerate(zip(before.batches, before.weights, after.batches, strict=True)):
        g = gradients(weights, batch)
        g = torch.outer(g @ z, z) if gradient == "zeroth_order" else g
        others, always = (batch["source"] != 2).nonzero()[:, 0], (batch["source"] == 2).nonzero()[:, 0]
        means, squares = 0.9 * exp_avg + 0.1 * g[others], 0.999 * exp_avg_sq + 0.001 * g[others] ** 2
        directions = means / (1 - 0.9 ** (step + 1)) / ((squares / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        sources = batch["source"][others]
        positions, _ = coreset_by_source(sparsify_by_source(directions, sources, 50), sources, 10 - len(always))
        exp_avg, exp_avg_sq = means[positions].mean(0), squares[positions].mean(0)
        chosen = torch.cat([always, others[positions]]).sort().values
        assert kept.keys() == batch.keys()
        assert all(torch.equal(kept[key], batch[key][chosen]) for key in batch)
    assert colm.step == 3
    torch.testing.assert_close(colm.exp_avg, exp_avg, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(colm.exp_avg_sq, exp_avg_sq, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gradient", ["exact", "zeroth_order"])
def test_a_ratio_of_one_is_plain_training_bit_for_bit(make_trainer, gradient):
    plain = fit(make_trainer).state_dict()
    whole = fit(make_trainer, CoLM(1.0, gradient=gradient, **HEAD)).state_dict()
    part = fit(make_trainer, CoLM(0.5, gradient=gradient, **HEAD)).state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in plain.items())
    assert not torch.equal(part["network.head.weight"], plain["network.head.weight"])


def test_small_sources_are_kept(make_trainer):
    before, after = Recorder(), Recorder()
    fit(make_trainer, before, CoLM(0.5, "auto", **HEAD), after)  # 63 and 189 of 1,258
    for batch, kept in zip(before.batches, after.batches, strict=True):
        assert len(kept["index"]) == 20
        for source in (1, 2):
            assert (kept["source"] == source).sum() == (batch["source"] == source).sum()
    before, after, colm = Recorder(), Recorder(), CoLM(0.25, [0, 1], **HEAD)
    fit(make_trainer, before, colm, after)
    for batch, kept in zip(before.batches, after.batches, strict=True):  # more than fit: the first ones
        assert kept["index"].tolist() == batch["index"][batch["source"] < 2][:10].tolist()
    assert colm.step == 0


def test_the_last_value_projection_of_a_transformer_in_bf16(make_trainer):
    after, colm = Recorder(), CoLM()
    network = ViT(8, 4, 10, in_channels=1, dim=8, depth=2, num_heads=2)
    fit(make_trainer, colm, after, network=network, data=Digits(batch_size=16, seed=0), precision="bf16-mixed")
    assert colm._name == "blocks.1.attention.v_proj.weight"
    assert [len(batch["index"]) for batch in after.batches] == [8] * 3
    assert colm.exp_avg.dtype == torch.float32


def test_the_share_is_logged_and_micro_batches_are_chosen_from(make_trainer, tmp_path):
    after = Recorder()
    logger = CSVLogger(str(tmp_path))
    fit(make_trainer, CoLM(0.25, **HEAD), after, logger=logger, accumulate_grad_batches=2)
    assert [len(batch["index"]) for batch in after.batches] == [5] * 6
    assert "train/colm_kept" in (tmp_path / "metrics.csv").read_text()


def test_soft_targets_are_as_hard_ones(make_trainer):
    class Soften(MethodCallback):
        def transform_batch(self, method, batch):
            return batch | {"target": functional.one_hot(batch["target"], 10).float()}

    hard, soft = Recorder(), Recorder()
    fit(make_trainer, CoLM(0.25, **HEAD), hard, steps=1)
    fit(make_trainer, Soften(), CoLM(0.25, **HEAD), soft, steps=1)
    assert torch.equal(hard.batches[0]["index"], soft.batches[0]["index"])


def test_bad_input_is_refused(make_trainer):
    for arguments, message in (
        ({"ratio": 0.0}, r"ratio must lie in \(0, 1\], got 0.0"),
        ({"keep_sources": "small"}, "keep_sources must be a list of numbers or 'auto', got 'small'"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"gradient": "none"}, "gradient must be 'zeroth_order' or 'exact', got 'none'"),
        ({"zo_eps": 0.0}, "zo_eps and eps must be positive"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            CoLM(**arguments)
    with pytest.raises(MisconfigurationException, match=r"one of \['body.0.weight', 'head.weight'\], got 'v_proj'"):
        fit(make_trainer, CoLM())
    with pytest.raises(ValueError, match="ratio 0.01 keeps 0 of 40 samples"):
        fit(make_trainer, CoLM(0.01, **HEAD))
    with pytest.raises(MisconfigurationException, match="must be of float32, got torch.bfloat16"):
        fit(make_trainer, CoLM(**HEAD), network=MLP(64, 10, ()).bfloat16())
    with pytest.raises(MisconfigurationException, match="needs a training set in memory that has 'source'"):
        fit(make_trainer, CoLM(0.5, "auto", **HEAD), data=Digits(batch_size=40))
    with pytest.raises(MisconfigurationException, match="CoLM needs a loss of every sample, but some have no label"):
        fit(make_trainer, Unlabel(), CoLM(**HEAD))
    with pytest.raises(ValueError, match=r"CoLM needs the batch keys \['source'\]"):
        fit(make_trainer, CoLM(0.5, [1], **HEAD), data=Digits(batch_size=40))


def test_slopes_are_those_of_the_losses(make_trainer):
    before, colm = Recorder(), CoLM(1.0, **HEAD)
    method = fit(make_trainer, before, colm, steps=1)
    weights = before.weights[0]
    method.load_state_dict(method.state_dict() | weights)
    batch, z = before.batches[0], colm._direction
    moved = [
        losses(weights | {"network.head.weight": weights["network.head.weight"] + s * z}, batch) for s in (1e-3, -1e-3)
    ]
    expected = torch.outer((moved[0] - moved[1]) / 2e-3, z.double().flatten())
    torch.testing.assert_close(colm._gradients(method, batch).double(), expected, rtol=1e-2, atol=1e-3)
    assert math.isclose(z.std().item(), 1.0, abs_tol=0.2)
