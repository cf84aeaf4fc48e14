import pytest
import torch
from torch.nn import functional

from leyden.losses import boosting_init, boosting_residual, boosting_step_size

# Printed by the loss classes of the authors' code, GAA-UAM/GBNN at b0b4cfa, gbnn/GBNN.py, for the scores, targets and
# predictions here.
BINARY = {
    "target": torch.tensor([1, 0, 1, 1]),
    "raw": torch.tensor([[0.3], [-0.2], [-1.0], [2.0]], dtype=torch.float64),
    "prediction": torch.tensor([[0.5], [-1.0], [0.8], [0.1]], dtype=torch.float64),
    "init": [0.5493061443],
    "residual": [[0.7086873875], [-0.8026246798], [1.761594156], [0.0359724199]],
    "step": 1.760988458206182,
}
MULTICLASS = {
    "target": torch.tensor([0, 2, 1, 1]),
    "raw": torch.tensor([[0.5, -0.2, 0.1], [0.0, 0.3, -1.0], [2.0, 0.0, 0.4], [-0.3, 0.9, 0.0]], dtype=torch.float64),
    "prediction": torch.tensor(
        [[0.4, -0.1, 0.2], [-0.5, 0.2, 0.6], [0.1, 0.7, -0.3], [0.0, 0.3, -0.2]], dtype=torch.float64
    ),
    "init": [0.0, 0.0, 0.0],
    "residual": [
        [0.5385123766, -0.2291679717, -0.309344405],
        [-0.3679530214, -0.4966846267, 0.8646376481],
        [-0.7478135048, 0.8987944475, -0.1509809427],
        [-0.176367598, 0.4144389534, -0.2380713555],
    ],
    "step": 6.270136822858229,
}


@pytest.mark.parametrize(("loss", "case"), [("binary", BINARY), ("multiclass", MULTICLASS)])
def test_numbers_of_the_authors_code(loss, case):
    target, raw = case["target"], case["raw"]
    assert boosting_init(target, loss=loss).tolist() == pytest.approx(case["init"], rel=1e-6)
    residual = boosting_residual(raw, target, loss=loss)
    assert torch.allclose(residual, torch.tensor(case["residual"], dtype=torch.float64), rtol=0.0, atol=1e-9)
    step = boosting_step_size(target, residual, case["prediction"], loss=loss)
    assert step.item() == pytest.approx(case["step"], rel=1e-9)


def test_residual_is_minus_the_gradient():
    for case, loss, value in (
        (BINARY, "binary", lambda raw, target: functional.softplus(-2.0 * (2.0 * target[:, None] - 1.0) * raw).sum()),
        (MULTICLASS, "multiclass", lambda raw, target: functional.cross_entropy(raw, target, reduction="sum")),
    ):
        raw = case["raw"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(raw, case["target"]), raw)
        assert torch.allclose(boosting_residual(case["raw"], case["target"], loss=loss), -gradient)


def test_mean_is_the_start_of_squared_error():
    target = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    start = boosting_init(target, loss="mse")
    assert start.tolist() == [2.0, 5.0]
    residual = boosting_residual(start.expand(2, 2), target, loss="mse")
    assert residual.tolist() == [[-1.0, -3.0], [1.0, 3.0]]
    assert boosting_step_size(target, residual, torch.rand(2, 2), loss="mse") == 1.0


def test_soft_targets_are_those_of_hard_ones():
    hard, raw = MULTICLASS["target"], MULTICLASS["raw"]
    soft = functional.one_hot(hard, 3).double()
    residual = boosting_residual(raw, soft, loss="multiclass")
    assert torch.equal(residual, boosting_residual(raw, hard, loss="multiclass"))
    arguments = residual, MULTICLASS["prediction"]
    assert boosting_step_size(soft, *arguments, loss="multiclass") == boosting_step_size(
        hard, *arguments, loss="multiclass"
    )
    assert boosting_init(hard, loss="multiclass", num_classes=7).shape == (7,)


def test_a_single_or_a_fitted_class_stays_finite():
    assert boosting_init(torch.ones(4, dtype=torch.int64), loss="binary").isfinite().all()
    residual = boosting_residual(torch.tensor([[40.0]]), torch.tensor([1]), loss="binary")
    step = boosting_step_size(torch.tensor([1]), residual, torch.ones(1, 1), loss="binary")
    assert step.isfinite()
    sure = torch.tensor([[90.0, 0.0]])
    wrong = boosting_residual(sure, torch.tensor([1]), loss="multiclass")
    assert boosting_step_size(torch.tensor([1]), wrong, torch.tensor([[-1.0, 1.0]]), loss="multiclass") == 1000.0


@pytest.mark.parametrize(
    ("target", "loss", "message"),
    [
        (torch.tensor([0]), "hinge", "loss must be 'mse', 'binary' or 'multiclass', got 'hinge'"),
        (torch.zeros(0, dtype=torch.int64), "multiclass", "target must not be empty"),
        (torch.tensor([0, 1]), "mse", r"target must be float \[N, C\] with loss='mse', got torch.int64 \(2,\)"),
        (torch.tensor([0.0, 1.0]), "binary", r"target must be int64 \[N\] with loss='binary'"),
        (torch.tensor([0, 2]), "binary", "target must be 0 or 1 with loss='binary', got 0 to 2"),
    ],
)
def test_bad_targets(target, loss, message):
    with pytest.raises(ValueError, match=message):
        boosting_init(target, loss=loss)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"raw must have the shape \(4, 1\) with loss='binary', got \(4, 3\)"):
        boosting_residual(MULTICLASS["raw"], BINARY["target"], loss="binary")
    with pytest.raises(ValueError, match=r"prediction must have the shape of residual, \(4, 3\), got \(4, 1\)"):
        boosting_step_size(MULTICLASS["target"], MULTICLASS["raw"], BINARY["raw"], loss="multiclass")
