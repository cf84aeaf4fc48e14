import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import MiniBatchAwareRegularization
from leyden.core import MethodCallback, Network
from leyden.data import Digits, GeneratedClicks
from leyden.methods import Classification
from leyden.models import DIN, MLP

DATA = {"num_train": 60, "num_eval": 20, "num_items": 20, "num_groups": 4, "num_interests": 2, "max_history": 3}


class Recorder(MethodCallback):
    """Notes ids, embedding and term of each step."""

    def __init__(self):
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        weight = method.network.items.weight.detach().clone()
        self.steps.append((batch["input"], weight, terms["minibatch_l2"].item()))
        return terms


def fit(network, *callbacks, kind=Classification, data=None, max_epochs=2, **arguments):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    method = kind(network, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer.fit(method, datamodule=data or GeneratedClicks(batch_size=10, seed=0, **DATA))
    return method


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_of_a_fit(accumulate):
    regularization, recorder = MiniBatchAwareRegularization(weight=0.5), Recorder()
    network = DIN(21, dim=2, hidden=(4,))
    fit(network, regularization, recorder, accumulate_grad_batches=accumulate)
    assert len(recorder.steps) == 2 * 6 * accumulate
    epoch = torch.cat([ids for ids, _, _ in recorder.steps[: 6 * accumulate]])
    assert len(epoch) == 60  # the whole training set
    counts = torch.bincount(epoch.flatten(), minlength=21)
    assert torch.equal(regularization.counts["items"][1:], counts[1:].double())
    for ids, weight, term in recorder.steps:
        present = set(ids.flatten().tolist()) - {0}
        expected = sum(0.5 * weight[j].square().sum().item() / counts[j].item() for j in present)
        assert term == pytest.approx(0.5 * expected, rel=1e-5)


class Freeze(Callback):
    def on_train_start(self, trainer, pl_module):
        pl_module.network.items.eval()


def test_what_is_in_evaluation_mode_stays_so():
    network = DIN(21, dim=2, hidden=(4,))
    fit(network, Freeze(), MiniBatchAwareRegularization(), max_epochs=1)
    assert not network.items.training
    assert network.training


def test_counts_go_with_the_checkpoint_and_are_renewed_by_a_fit():
    first = MiniBatchAwareRegularization()
    network = DIN(21, dim=2, hidden=(4,))
    fit(network, first)
    saved = copy.deepcopy(first.state_dict())
    other = GeneratedClicks(batch_size=10, seed=0, data_seed=1, **DATA)
    fit(network, first, data=other, max_epochs=1)
    assert not torch.equal(first.counts["items"], saved["counts"]["items"])
    first.load_state_dict(saved)
    assert torch.equal(first.counts["items"], saved["counts"]["items"])


def test_weight_zero_changes_nothing():
    plain, weightless, heavy = (
        fit(network, *([MiniBatchAwareRegularization(weight)] if weight is not None else [])).state_dict()
        for network, weight in zip(three_alike(), (None, 0.0, 1.0), strict=True)
    )
    assert all(torch.equal(plain[name], weightless[name]) for name in plain)
    assert not torch.equal(plain["network.items.weight"], heavy["network.items.weight"])


def three_alike():
    network = DIN(21, dim=2, hidden=(4,))
    return [copy.deepcopy(network) for _ in range(3)]


class Twice(Classification):
    """Evaluates the loss of a step twice, as sharpness-aware methods do."""

    def training_step(self, batch, batch_idx):
        batch = self.transform_batch(batch)
        [(outputs, terms), (_, again)] = [self.terms_of(batch) for _ in range(2)]
        assert torch.equal(terms["minibatch_l2"], again["minibatch_l2"])
        return self.sum_terms(terms, num_samples=self.loss_count(batch, outputs))


def test_a_loss_that_is_evaluated_twice():
    regularization = MiniBatchAwareRegularization()
    fit(DIN(21, dim=2, hidden=(4,)), regularization, kind=Twice)
    assert regularization._lookups is None  # nothing is kept of validation


class TwoTables(Network):
    """Embeds the digits' pixels by row and by grey level; the second table may stay unused."""

    def __init__(self, both=True, sparse=False):
        super().__init__()
        self.grey = nn.Embedding(17, 4, sparse=sparse)
        self.place = nn.Embedding(64, 4)
        self.both = both
        self.feature_dim = 4
        self.head = nn.Linear(4, 10)

    def features(self, x):
        embedded = self.grey((16 * x.flatten(1)).long())
        if self.both:
            embedded = embedded * self.place(torch.arange(64))
        return embedded.mean(1)


def digits():
    return Digits(num_train=32, batch_size=8, seed=0)


def test_embeddings_by_name():
    both, one = MiniBatchAwareRegularization(), MiniBatchAwareRegularization(embeddings=["grey"])
    fit(TwoTables(), both, data=digits())
    assert both.counts["place"].tolist() == [4.0] * 64  # once in each of 4 batches
    fit(TwoTables(both=False), one, data=digits())
    assert one.counts.keys() == {"grey"}
    assert one.counts["grey"].sum() == 32 * 64


def test_sparse_embeddings_keep_a_sparse_gradient():
    class Look(MethodCallback):
        def on_after_backward(self, trainer, pl_module):
            self.is_sparse = pl_module.network.grey.weight.grad.is_sparse

    look = Look()
    fit(TwoTables(sparse=True), MiniBatchAwareRegularization(), look, data=digits(), max_epochs=1)
    assert look.is_sparse


def test_bad_set_ups_are_refused():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        MiniBatchAwareRegularization(weight=-1.0)
    with pytest.raises(ValueError, match="MLP has no torch.nn.Embedding to regularize"):
        fit(MLP(64, 10, (4,)), MiniBatchAwareRegularization(), data=digits())
    with pytest.raises(ValueError, match="there is no torch.nn.Embedding 'gray'; near it: grey"):
        fit(TwoTables(), MiniBatchAwareRegularization(embeddings=["gray"]), data=digits())
    with pytest.raises(MisconfigurationException, match="nothing was looked up in place: leave it out of embeddings"):
        fit(TwoTables(both=False), MiniBatchAwareRegularization(), data=digits())
    frozen = TwoTables()
    frozen.place.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"no effect on embeddings that are frozen \(place\): train"):
        fit(frozen, MiniBatchAwareRegularization(), data=digits())
    fit(frozen, MiniBatchAwareRegularization(embeddings=["grey"]), data=digits(), max_epochs=1)
    method = Classification(TwoTables())
    with pytest.raises(MisconfigurationException, match="train with a leyden.data.DataModule"):
        MiniBatchAwareRegularization().build(method)
