from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import FairnessPenalty
from leyden.core import Outputs, rank
from leyden.data import DataModule, GeneratedApplicants, TensorDictDataset
from leyden.losses import concatenated_distance_covariance, distance_correlation, joint_distance_covariance
from leyden.methods import Classification, Regression
from leyden.models import MLP

ATTRIBUTES = ["gender", "region", "age"]


def term(penalty, batch, logits, num_classes):
    penalty._num_classes = num_classes
    terms = penalty.loss_terms(None, batch, Outputs(logits=logits), {"task": torch.tensor(1.0)})
    assert list(terms) == ["task", "fairness"]
    return terms["fairness"]


@pytest.mark.parametrize("num_outputs", [1, 2, 3])
def test_term(num_outputs):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, num_outputs, generator=generator)
    batch = {"group": torch.arange(9) % 3, "age": torch.randn(9, generator=generator)}
    prediction = {1: logits, 2: (logits[:, -1] - logits[:, 0]).sigmoid(), 3: logits.softmax(-1)}[num_outputs]
    num_classes = None if num_outputs == 1 else num_outputs
    attributes = [batch["group"], batch["age"]]
    torch.testing.assert_close(
        term(FairnessPenalty(["group", "age"], 0.5), batch, logits, num_classes),
        0.5 * concatenated_distance_covariance(prediction, attributes, unbiased=True),
    )
    torch.testing.assert_close(
        term(FairnessPenalty(["group", "age"], 0.5, measure="jdcov", c=2.0), batch, logits, num_classes),
        0.5 * joint_distance_covariance([prediction, *attributes], c=2.0, unbiased=True),
    )


def fit(penalty, method=None, data=None, **arguments):
    torch.manual_seed(0)
    method = method or Classification(MLP(6, 2, (16,)), optimizer=partial(torch.optim.Adam, lr=0.02))
    data = data or GeneratedApplicants(num_train=256, num_eval=200, batch_size=64, seed=0)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[penalty],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"max_epochs": 8, **arguments},
    )
    trainer.fit(method, datamodule=data)
    return trainer, method, data


def test_penalty_lowers_the_measured_correlation():
    found = {}
    for weight in (0.0, 30.0):
        trainer, method, data = fit(FairnessPenalty(ATTRIBUTES, weight))
        found[weight] = trainer.callback_metrics["val/dcor"].item()
        trainer.test(method, datamodule=data, verbose=False)
        tensors = data.dataset("test").tensors
        prediction = method.network(tensors["input"]).softmax(-1)[:, 1].detach()
        expected = distance_correlation(prediction, [tensors[name] for name in ATTRIBUTES])
        torch.testing.assert_close(trainer.callback_metrics["test/dcor"], expected)  # batches of 64: the whole set
    assert found[30.0] < 0.5 * found[0.0]


class Heights(DataModule):
    def datasets(self):
        x = torch.arange(8.0).unsqueeze(1)
        part = TensorDictDataset({"input": x, "target": x, "group": torch.arange(8) % 2})
        return {"train": part, "val": part, "test": part}


def test_regression():
    method = Regression(MLP(1, 1, ()), optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer, method, data = fit(FairnessPenalty(["group"]), method, Heights(batch_size=8), max_epochs=1)
    tensors = data.dataset("val").tensors
    expected = distance_correlation(method.network(tensors["input"]), tensors["group"])
    torch.testing.assert_close(trainer.callback_metrics["val/dcor"], expected.detach())


class PlainData(DataModule):
    def datasets(self):
        part = TensorDictDataset({"input": torch.zeros(8, 6), "target": torch.zeros(8, dtype=torch.int64)})
        return {"train": part, "val": part}

    num_classes = 2


def test_bad_input():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        FairnessPenalty(["group"], -1.0)
    with pytest.raises(ValueError, match="attributes must be a list of one or more keys of the batch, got 'group'"):
        FairnessPenalty("group")
    with pytest.raises(ValueError, match="attributes must be a list of one or more keys"):
        FairnessPenalty([])
    with pytest.raises(ValueError, match="measure must be 'ccdcov' or 'jdcov', got 'dcov'"):
        FairnessPenalty(["group"], measure="dcov")
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        FairnessPenalty(["group"], c=0.0)
    with pytest.raises(ValueError, match=r"FairnessPenalty needs the batch keys \['group'\]"):
        fit(FairnessPenalty(["group"]), data=PlainData(batch_size=8))
    with pytest.raises(MisconfigurationException, match="needs a DataModule with num_classes"):
        FairnessPenalty(["group"]).build(Classification(MLP(6, 2)))


def on_two():
    generator = torch.Generator().manual_seed(0)
    x, group = torch.randn(8, 3, generator=generator), torch.arange(8) % 3
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    rows = slice(4 * rank(), 4 * rank() + 4)
    value = term(FairnessPenalty(["group"]), {"group": group[rows]}, layer(x[rows]), 2)
    value.backward()
    return value.item(), layer.weight.grad


def test_two_processes(run_processes):
    generator = torch.Generator().manual_seed(0)
    x, group = torch.randn(8, 3, generator=generator), torch.arange(8) % 3
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    value = term(FairnessPenalty(["group"]), {"group": group}, layer(x), 2)
    value.backward()
    (one, grad_of_one), (two, grad_of_two) = run_processes(on_two, 2)
    assert [one, two] == [pytest.approx(value.item(), rel=1e-5)] * 2
    torch.testing.assert_close((grad_of_one + grad_of_two) / 2, layer.weight.grad)
