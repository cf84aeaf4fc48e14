"""Soft targets against Hinton's formula, computed by hand."""

import math

import pytest
import torch

from leyden.callbacks import SoftTargets
from leyden.core import Outputs
from leyden.methods import Classification
from leyden.models import MLP


def mlp(bias):
    network = MLP(in_features=2, num_outputs=2, hidden=[3])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.head.bias.copy_(torch.tensor(bias))
    return network


def soft(callback, logits):
    method = Classification(mlp([0.0, 0.0]))
    callback.build(method)
    outputs = Outputs(logits=torch.tensor([logits]).expand(3, -1))
    terms = callback.loss_terms(method, {"input": torch.zeros(3, 2)}, outputs, {"task": torch.tensor(2.0)})
    return {name: term.item() for name, term in terms.items()}, method


def kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_one_teacher():
    # log 9 / 2 = log 3: the softened teacher has 3/4 and 1/4, the student 1/2 and 1/2
    terms, method = soft(SoftTargets(mlp([math.log(9.0), 0.0]), weight=0.75, temperature=2.0), [0.0, 0.0])
    assert terms["task"] == pytest.approx(0.25 * 2.0)
    assert terms["soft_targets"] == pytest.approx(0.75 * 4.0 * kl(0.75, 0.5), rel=1e-6)
    assert not any(parameter.requires_grad for parameter in next(iter(method.frozen.values())).parameters())
    assert "teacher" not in "".join(method.state_dict())


def test_several_teachers_are_averaged_as_probabilities():
    teachers = [mlp([math.log(9.0), 0.0]), mlp([0.0, 0.0])]  # 0.9 and 0.5
    terms, _ = soft(SoftTargets(teachers, weight=1.0, temperature=1.0), [math.log(4.0), 0.0])
    assert terms["task"] == 0.0
    assert terms["soft_targets"] == pytest.approx(kl(0.7, 0.8), rel=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="teachers must be at least one network"):
        SoftTargets([])
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], got 2"):
        SoftTargets(mlp([0.0, 0.0]), weight=2.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        SoftTargets(mlp([0.0, 0.0]), temperature=0.0)
    with pytest.raises(ValueError, match=r"teachers must have outputs \(3, 3\) as the student, got \(3, 2\)"):
        soft(SoftTargets(mlp([0.0, 0.0])), [0.0, 0.0, 0.0])
