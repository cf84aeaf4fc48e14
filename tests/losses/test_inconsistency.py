import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from leyden.losses import InconsistencyLoss, head_gradients, inconsistency_loss

SOURCE = torch.tensor([[1.0, -0.5], [0.2, 0.8], [-1.0, 0.3]], dtype=torch.float64)
PERTURBED = torch.tensor([[0.7, -0.9], [0.4, 1.1], [-1.3, 0.1]], dtype=torch.float64)
TARGET = torch.tensor([0, 2, 1])


def head():
    layer = nn.Linear(2, 3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]]))
        layer.bias.copy_(torch.tensor([0.05, -0.1, 0.2]))
    return layer


def gradients(features, layer=None, target=TARGET):
    return head_gradients(features, (layer or head())(features), target)


def test_each_example_against_autograd():
    layer = head()

    def loss(parameters, x, label):
        return nn.functional.cross_entropy(functional_call(layer, parameters, (x[None],)), label[None])

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    expected = vmap(grad(loss), (None, 0, 0))(parameters, SOURCE, TARGET)
    weight, bias = gradients(SOURCE)
    torch.testing.assert_close(weight, expected["weight"].flatten(1))
    torch.testing.assert_close(bias, expected["bias"])
    soft = nn.functional.one_hot(TARGET, 3).double()
    assert all(map(torch.equal, gradients(SOURCE, target=soft), (weight, bias)))


def test_numbers_of_the_authors():
    # _compute_distance_grads_var and _grads_norm_syn of aailabkaist/UDIM's iada_final.py, given these gradients by
    # autograd, in place of BackPACK's
    loss = inconsistency_loss(gradients(SOURCE), gradients(PERTURBED))
    assert loss.item() == pytest.approx(0.0004995518560243092 + 0.38695025628175994, rel=1e-9)
    assert InconsistencyLoss()(gradients(SOURCE), gradients(PERTURBED)) == loss


def test_equal_domains_have_no_distance_and_order_does_not_count():
    grads = gradients(SOURCE)
    size = sum(g.square().mean() for g in grads)
    torch.testing.assert_close(inconsistency_loss(grads, grads), size)
    order = torch.tensor([2, 0, 1])
    loss = inconsistency_loss(grads, gradients(PERTURBED))
    shuffled = inconsistency_loss([g[order] for g in grads], [g[order.flip(0)] for g in gradients(PERTURBED)])
    torch.testing.assert_close(shuffled, loss)


def test_gradient_reaches_the_features():
    def loss(features):
        return inconsistency_loss(gradients(features), gradients(features + 0.1 * PERTURBED))

    assert torch.autograd.gradcheck(loss, SOURCE.clone().requires_grad_())


ROWS = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of_a_share():
    rank = torch.distributed.get_rank()
    scale = torch.ones(5, dtype=torch.float64, requires_grad=True)
    source, perturbed = (scale.sin() * rows.chunk(2)[rank] for rows in ROWS)
    loss = inconsistency_loss([source], [perturbed * scale])
    return loss.detach(), torch.autograd.grad(loss, scale)[0]


def test_two_processes_are_one(run_processes):
    scale = torch.ones(5, dtype=torch.float64, requires_grad=True)
    source, perturbed = (scale.sin() * rows for rows in ROWS)
    loss = inconsistency_loss([source], [perturbed * scale])
    [gradient] = torch.autograd.grad(loss, scale)
    losses, gradients = zip(*run_processes(of_a_share, 2), strict=True)
    torch.testing.assert_close(losses, (loss.detach(),) * 2)
    torch.testing.assert_close(sum(gradients) / 2, gradient)  # DDP takes the mean


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"features \[N, D\], logits \[N, C\] and target"):
        head_gradients(SOURCE, torch.zeros(2, 3), TARGET)
    for source, perturbed in (([], []), ([SOURCE], [TARGET]), ([SOURCE], [torch.zeros(3, 3)])):
        with pytest.raises(ValueError, match=r"must be \[N, P_k\] for the same parameters"):
            inconsistency_loss(source, perturbed)
    with pytest.raises(ValueError, match="one example or more"):
        inconsistency_loss([SOURCE], [torch.zeros(0, 2)])
