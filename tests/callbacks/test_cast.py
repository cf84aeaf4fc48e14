from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import CAST, EMA
from leyden.losses import cast_loss
from leyden.methods import Classification
from leyden.models import MLP
from leyden.nn import GroupScale, finalize_nm, nm_mask
from leyden.optim import AdamS

ADAM_S = partial(AdamS, lr=0.02, betas=(0.9, 0.9), l1_decay=0.1, n=1, m=2)


def method(optimizer=ADAM_S, **kwargs):
    torch.manual_seed(0)
    return Classification(MLP(6, 3, (8, 8)), optimizer=optimizer, **kwargs)


@pytest.fixture
def fit(make_trainer, make_data):
    def fit(module, *callbacks, **kwargs):
        trainer = make_trainer(*callbacks, **{"max_epochs": 2, **kwargs})
        trainer.fit(module, datamodule=make_data())
        return trainer

    return fit


def test_pruning_costs_next_to_nothing(fit, make_data):
    dense_end, pruned = method(), method()
    callback = CAST(1, 2)
    callback.prune = lambda trainer, module: None
    fit(dense_end, callback, max_epochs=15)
    trainer = fit(pruned, CAST(1, 2), max_epochs=15)
    x = make_data().datasets()["train"].__getitems__(list(range(48)))["input"]
    before, after = (module.network.eval()(x) for module in (dense_end, pruned))
    assert (after - before).abs().max() < 0.1 * before.abs().max()
    layer = pruned.network.body[0]
    assert (layer.weight.unflatten(1, (-1, 2)) != 0).sum(-1).unique().tolist() == [1]
    weight = dense_end.network.body[0].parametrizations.weight.original
    assert torch.equal(layer.parametrizations.weight.original, weight * nm_mask(weight, 1, 2))
    assert (pruned.network.head.weight != 0).all()
    assert trainer.optimizers[0].param_groups[0]["total_steps"] == 90
    assert finalize_nm(pruned.network, 1, 2) == ["body.0", "body.3"]
    assert torch.equal(pruned.network(x), after)
    assert type(pruned.network.body[0]) is nn.Linear


def test_the_teacher_is_the_start(fit, make_data):
    module = method()
    start = MLP(6, 3, (8, 8))
    start.load_state_dict(module.network.state_dict())
    terms = {}

    class Watch(CAST):
        def loss_terms(self, method, batch, outputs, given):
            found = super().loss_terms(method, batch, outputs, given)
            terms.update(found=sum(found.values()).item())
            loss = cast_loss(outputs.logits, start(batch["input"]), batch["target"], eta=0.4)
            terms.update(expected=loss.item())
            return found

    fit(module, Watch(1, 2, eta=0.4))
    assert terms["found"] == pytest.approx(terms["expected"], rel=1e-5)


def test_without_scales_and_teacher(fit):
    module = method()
    trainer = fit(module, CAST(1, 2, groups=0, eta=0.0), EMA(0.9))
    assert not any(isinstance(part, GroupScale) for part in module.network.modules())
    assert "train/cast_epoch" not in trainer.callback_metrics
    assert not module.frozen
    assert (module.network.body[3].weight != 0).sum() == 32


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_resumed(run, assert_same_runs, eta):
    def callbacks():
        return [CAST(1, 2, eta=eta), EMA(0.9)]

    whole = run("whole", callbacks=callbacks, method=method)
    assert_same_runs(run("cut", (1, 6, 13), callbacks=callbacks, method=method), whole)


def test_bad_setups_are_refused(fit):
    with pytest.raises(ValueError, match="n must lie in 1 to m, got n=5 and m=4"):
        CAST(5)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 2.0"):
        CAST(eta=2.0)
    with pytest.raises(ValueError, match="groups must be at least 0, got -1"):
        CAST(groups=-1)
    with pytest.raises(ValueError, match="body.0: in_features must be a multiple of groups, got 6 and 4"):
        fit(method(), CAST(1, 2, groups=4))
    with pytest.raises(MisconfigurationException, match="CAST needs the optimizer leyden.optim.AdamS, got AdamW"):
        fit(method(torch.optim.AdamW), CAST(1, 2))
    with pytest.raises(MisconfigurationException, match="CAST prunes to 2:4, AdamS to 1:2: give both the same"):
        fit(method(), CAST(2, 4))
    with pytest.raises(MisconfigurationException, match="of a parameter group with sparse=False"):
        fit(method(param_groups={"network.body.0.*": {"sparse": False}}), CAST(1, 2))
    with pytest.raises(MisconfigurationException, match="total_steps, which an endless fit does not have"):
        fit(method(), CAST(1, 2), max_epochs=-1)
