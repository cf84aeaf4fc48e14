import pytest
import torch

from leyden.metrics import PassAtN

P = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 1])


def value(n, logits=None, target=TARGET):
    metric = PassAtN(n)
    metric.update(P.log() if logits is None else logits, target)
    return metric.compute().item()


@pytest.mark.parametrize("n", [1, 3, 100])
def test_by_hand(n):
    assert value(n) == pytest.approx(((1 - 0.5**n) + (1 - 0.8**n) + 0.0) / 3, rel=1e-12)


def test_share_of_draws_with_a_right_answer():
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(P, 4 * 20_000, replacement=True, generator=generator).view(3, -1, 4)
    share = (draws == TARGET.view(3, 1, 1)).any(-1).double().mean().item()
    assert value(4) == pytest.approx(share, abs=0.005)


def test_answers_of_several_tokens():
    logits = P.log().unsqueeze(0).repeat(2, 1, 1)
    target = torch.tensor([[0, 2, -100], [1, 0, 2]])
    assert value(2, logits, target) == pytest.approx(((1 - 0.65**2) + (1 - 0.95**2)) / 2, rel=1e-12)


def test_batches_add_up_and_reset():
    metric = PassAtN(3)
    for rows in (slice(0, 1), slice(1, 3)):
        metric.update(P[rows].log(), TARGET[rows])
    assert metric.compute().item() == pytest.approx(value(3), rel=1e-12)
    metric.reset()
    metric.update(P[:1].log(), TARGET[:1])
    assert metric.compute().item() == pytest.approx(1 - 0.5**3)


def test_certain_answers():
    logits = torch.tensor([[100.0, -100.0]])
    assert value(8, logits, torch.tensor([0])) == 1.0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        PassAtN(0)
