from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import DPSGD, CurriculumLearning
from leyden.core import Network
from leyden.data import DataModule, Digits, Sequential, TensorDictDataset
from leyden.methods import Classification
from leyden.models import MLP


class Logits(Network):
    """Takes its input for scores."""

    def __init__(self):
        super().__init__()
        self.feature_dim = 2
        self.head = torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(2))
            self.head.bias.zero_()

    def features(self, x):
        return x


class Margins(DataModule):
    """Sample ``i`` has the logit ``i / 20`` for its class and 0 for the other; 30 are of one class, 10 of the other."""

    num_classes = 2
    soft = False

    def datasets(self):
        target = (torch.arange(40) >= 30).long()
        logits = torch.arange(40.0).view(-1, 1) / 20 * torch.eye(2)[target]
        return {"train": TensorDictDataset({"input": logits, "target": torch.eye(2)[target] if self.soft else target})}


class Indices(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(sorted(batch["index"].tolist()))


def fit(make_trainer, *callbacks, data, **kwargs):
    method = Classification(Logits(), optimizer=partial(torch.optim.SGD, lr=0.1))
    make_trainer(*callbacks, limit_val_batches=0, **kwargs).fit(method, data)


@pytest.mark.parametrize("soft", [False, True])
def test_samples_come_in_by_their_loss(soft, make_trainer):
    # by hand: the larger the margin, the lower the loss; of 15 steps the first has 8 samples, the second 8 + 32 / 12,
    # and the second epoch begins, with step 5, with 8 + 32 * 5 / 12 = 21, of which a pass is two batches
    data, indices = Margins(batch_size=8, seed=0), Indices()
    data.soft = soft
    fit(make_trainer, CurriculumLearning(Logits(), balance=False), indices, data=data)
    assert indices.seen[0] == list(range(32, 40))
    assert set(indices.seen[1]) <= set(range(40 - 10, 40))
    assert set(indices.seen[5] + indices.seen[6]) <= set(range(40 - 21, 40))
    assert len(indices.seen) == 15
    assert data.order is None, "the order is taken away after the fit"


@pytest.mark.parametrize(
    ("order", "first"),
    [("curriculum", [26, 27, 28, 29, 36, 37, 38, 39]), ("anti", list(range(8)))],
)
def test_classes_are_balanced(order, first, make_trainer):
    indices = Indices()
    fit(make_trainer, CurriculumLearning(Logits(), order=order), indices, data=Margins(batch_size=8, seed=0))
    assert indices.seen[0] == first


def test_the_steps_are_those_of_the_fit(make_trainer):
    def pools(**kwargs):
        callback = CurriculumLearning(Logits(), a=1.0, b=0.5)
        fit(make_trainer, callback, data=Margins(batch_size=8, seed=0), **kwargs)
        return [callback.order.pool_size(step) for step in (0, 5, 10)]

    assert pools(max_epochs=2) == [20, 30, 40]
    assert pools(max_epochs=-1, max_steps=10) == [20, 30, 40]
    assert pools(max_epochs=2, max_steps=20) == [20, 30, 40]
    with pytest.raises(MisconfigurationException, match="set trainer.max_epochs or max_steps"):
        pools(max_epochs=-1)


def test_a_resumed_run_keeps_the_ranking(make_trainer):
    callback, other = CurriculumLearning(Logits()), CurriculumLearning(Logits(), order="anti")
    assert callback.state_dict() == {}
    callback.load_state_dict({})
    fit(make_trainer, callback, data=Margins(batch_size=8, seed=0))
    fit(make_trainer, other, data=Margins(batch_size=8, seed=0))
    ranking = callback.order.ranking
    assert not torch.equal(other.order.ranking, ranking)
    other.load_state_dict(callback.state_dict())
    assert torch.equal(other.order.ranking, ranking)


def test_what_cannot_be(make_trainer):
    def run(*callbacks, **kwargs):
        method = Classification(MLP(64, 10, (8,)), optimizer=partial(torch.optim.SGD, lr=0.1))
        data = Digits(**{"num_train": 80, "batch_size": 8, "seed": 0} | kwargs)
        make_trainer(*callbacks, limit_val_batches=0).fit(method, data)

    reference = MLP(64, 10, (8,))
    private = DPSGD(target_epsilon=8.0, target_delta=1e-3)
    with pytest.raises(MisconfigurationException, match="has an order already .Sequential."):
        run(CurriculumLearning(reference), order=Sequential())
    with pytest.raises(MisconfigurationException, match="Poisson sampling draws them in each step"):
        run(private, CurriculumLearning(reference))
    with torch.no_grad():
        reference.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores must be numbers .N. without NaN"):
        run(CurriculumLearning(reference))
    for message, kwargs in (
        ("pacing must be one of .*, got 'cubic'", {"pacing": "cubic"}),
        ("order must be 'curriculum', 'anti' or 'random', got 'hard'", {"order": "hard"}),
        ("a must be positive, got -1", {"a": -1.0}),
    ):
        with pytest.raises(ValueError, match=message):
            CurriculumLearning(reference, **kwargs)
