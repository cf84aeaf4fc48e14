import pytest
import torch
from torch import nn

from leyden.nn import EMATeacher
from leyden.weights import ema_decay


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def train_step(network):
    """Changes weights and the statistics of batch normalisation."""
    network.train()
    network(torch.randn(16, 4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_starts_as_a_frozen_copy():
    network = make_network()
    teacher = EMATeacher(network)
    for (name, average), (other, current) in zip(
        teacher.module.state_dict().items(), network.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(average, current)
        assert average.data_ptr() != current.data_ptr()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.training


def test_forward_is_in_eval_mode_without_gradients():
    network = make_network()
    teacher = EMATeacher(network)
    x = torch.randn(5, 4, requires_grad=True)
    output = teacher(x)
    assert not output.requires_grad
    assert torch.equal(output, network.eval()(x))
    assert not torch.equal(teacher.train()(x), output)  # told otherwise: dropout and batch statistics


@pytest.mark.parametrize("decay", [0.9, lambda step: ema_decay(step, decay=0.9, warmup=True)])
def test_updates_are_the_float64_recursion(decay):
    network = make_network()
    teacher = EMATeacher(network, decay=decay)
    reference = [parameter.detach().double() for parameter in network.parameters()]
    for step in range(1, 12):
        train_step(network)
        teacher.update(network, step)
        d = decay(step) if callable(decay) else decay
        reference = [
            d * r + (1 - d) * p.detach().double() for r, p in zip(reference, network.parameters(), strict=True)
        ]
    for average, expected in zip(teacher.module.parameters(), reference, strict=True):
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-5)


def test_buffers_are_copied():
    network = make_network()
    teacher = EMATeacher(network, decay=0.9)
    train_step(network)
    teacher.update(network, 1)
    for average, current in zip(teacher.module.buffers(), network.buffers(), strict=True):
        assert torch.equal(average, current)
    assert teacher.module[1].num_batches_tracked.item() == 1
    assert teacher.module[1].num_batches_tracked.data_ptr() != network[1].num_batches_tracked.data_ptr()


def test_0_copies_and_1_freezes_bit_for_bit():
    network = make_network()
    frozen, copied = EMATeacher(network, decay=1.0), EMATeacher(network, decay=0.0)
    before = [parameter.clone() for parameter in network.parameters()]
    train_step(network)
    frozen.update(network, 1)
    copied.update(network, 1)
    for kept, old, new, current in zip(
        frozen.module.parameters(), before, copied.module.parameters(), network.parameters(), strict=True
    ):
        assert torch.equal(kept, old)
        assert torch.equal(new, current)


def test_the_student_does_not_follow():
    network = make_network()
    teacher = EMATeacher(network)
    train_step(network)
    before = [parameter.clone() for parameter in network.parameters()]
    teacher.update(network, 1)
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_state_round_trip():
    network = make_network()
    teacher = EMATeacher(network)
    train_step(network)
    teacher.update(network, 1)
    other = EMATeacher(make_network())
    other.load_state_dict(teacher.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(other(x), teacher(x))


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=rf"decay must lie in \[0, 1\] or be a function of the step, got {decay}"):
        EMATeacher(nn.Linear(2, 2), decay=decay)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="argument"):
        EMATeacher(nn.Linear(2, 2)).update(nn.Linear(2, 2, bias=False), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_that_would_stand_still_is_refused(dtype):
    with pytest.raises(ValueError, match=f"'weight' is {dtype}, too coarse for an average"):
        EMATeacher(nn.Linear(1, 1, bias=False).to(dtype))
