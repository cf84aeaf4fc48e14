import torch
from torch import nn

from leyden.core import accumulate_gradients, gradients_per_term, with_gradients


def problem():
    generator = torch.Generator().manual_seed(0)
    w, v = (nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(2))
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)

    def terms():
        hidden = (x * w).tanh()  # shared by both terms
        return {"square": hidden.square().mean(), "bilinear": (hidden @ v).mean()}

    return [w, v], terms


def test_each_term_alone_against_autograd():
    parameters, terms = problem()
    gradients = gradients_per_term(terms(), parameters)
    assert list(gradients) == ["square", "bilinear"]
    for name, found in gradients.items():
        expected = torch.autograd.grad(terms()[name], parameters, materialize_grads=True)
        torch.testing.assert_close(found, list(expected), rtol=0, atol=0)
    assert gradients["square"][1].eq(0).all()  # does not depend on v
    assert all(p.grad is None for p in parameters)


def test_the_sum_of_the_terms_is_what_backward_gives():
    parameters, terms = problem()
    for gradients in gradients_per_term(terms(), parameters).values():
        accumulate_gradients(parameters, gradients)
    found = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    sum(terms().values()).backward()
    torch.testing.assert_close(found, [p.grad for p in parameters])


def test_a_term_without_a_graph_has_zero_gradients():
    parameters, terms = problem()
    gradients = gradients_per_term({**terms(), "constant": torch.tensor(3.0)}, parameters)
    assert all(g.eq(0).all() for g in gradients["constant"])
    assert gradients["square"][0].ne(0).any()


def test_accumulating_adds_and_keeps_its_own_tensors():
    p = nn.Parameter(torch.zeros(2))
    gradient = torch.tensor([1.0, 2.0])
    accumulate_gradients([p], [gradient])
    accumulate_gradients([p], [gradient])
    assert p.grad.tolist() == [2.0, 4.0]
    assert gradient.tolist() == [1.0, 2.0]


def test_a_loss_with_gradients_of_its_own():
    p, unused = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(1))
    value = (3.0 * p).sum()
    gradients = [torch.tensor([0.1, 0.7]), torch.tensor([-5.0])]
    loss = with_gradients(value, [p, unused], gradients)
    assert loss == value
    (0.5 * loss).backward()
    assert torch.equal(p.grad, 0.5 * gradients[0])
    assert unused.grad.item() == -2.5
