import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.retrieval import RetrievalRPrecision

from leyden.data import DigitBags
from leyden.methods import BagClassification
from leyden.models import AttentionMIL

METRICS = {"instance_recall": RetrievalRPrecision(empty_target_action="skip", ignore_index=-1)}


def network():
    torch.manual_seed(0)
    return AttentionMIL(64, 2, hidden=8, attention_dim=4)


def test_padding_is_no_part_of_a_bag():
    method, data = BagClassification(network().eval()), DigitBags(min_size=5, max_size=9).dataset("test")
    batch = data.__getitems__([0, 1, 2, 3])
    outputs = method.compute(batch)
    for number in range(4):
        alone = data.__getitems__([number])
        assert torch.allclose(outputs.logits[number], method.compute(alone).logits[0], atol=1e-6)
        whole = method.compute({"input": alone["input"]})
        assert torch.allclose(whole.logits[0], outputs.logits[number], atol=1e-6)
        attention = whole.extra["attention"][0]
        assert torch.allclose(outputs.extra["attention"][number, : len(attention)], attention, atol=1e-6)


def test_metrics(make_trainer):
    method = BagClassification(network(), metrics={"auroc": MulticlassAUROC(2)}, instance_metrics=METRICS)
    with torch.no_grad():
        method.network.head.weight *= 10.0  # torchmetrics takes a batch of logits within [0, 1] for probabilities
    data = DigitBags(num_eval_bags=30, eval_batch_size=8, seed=0)
    [logged] = make_trainer().test(method, datamodule=data, verbose=False)
    bags = data.dataset("test")
    scores, found, asked = [], [], 0
    for number in range(30):
        bag = bags.__getitems__([number])
        outputs = method.eval().compute(bag)
        scores.append(outputs.logits.softmax(-1)[0, 1].item())
        positive = bag["instance_target"][0].nonzero()[:, 0].tolist()
        ranked = sorted(range(bag["mask"].shape[1]), key=lambda n: -outputs.extra["attention"][0, n].item())
        if positive:
            found.append(sum(n in positive for n in ranked[: len(positive)]) / len(positive))
            asked += len(positive)
    assert asked > 15
    assert logged["test/auroc"] == pytest.approx(roc_auc_score(bags.target, scores), abs=1e-6)
    assert logged["test/instance_recall"] == pytest.approx(sum(found) / len(found), abs=1e-6)


def test_unfitting_metrics_are_refused():
    with pytest.raises(ValueError, match=r"instance_metrics has \['auroc'\], which are logged anyway"):
        BagClassification(network(), metrics={"auroc": METRICS["instance_recall"]}, instance_metrics={"auroc": None})
    method = BagClassification(network(), instance_metrics=METRICS)
    bag = DigitBags().dataset("test").__getitems__([0])
    outputs = method.compute(bag)
    del bag["instance_target"]
    with pytest.raises(ValueError, match=r"instance_metrics needs the batch keys \['instance_target'\]"):
        method.update_metrics(method.metrics["val"], bag | {"index": torch.tensor([0])}, outputs)
