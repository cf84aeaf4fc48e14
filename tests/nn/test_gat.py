"""Graph attention against numbers of PyTorch Geometric, and what must not change it."""

import pytest
import torch

from leyden.nn import GATConv

GRAPH = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)


def waves(*shape, shift):
    return (shift + torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).sin().view(shape)


def layer(*, concat=True):
    conv = GATConv(3, 2, heads=2, concat=concat).double()
    state = {"weight": waves(4, 3, shift=2), "att_src": waves(2, 2, shift=3), "att_dst": waves(2, 2, shift=4)}
    conv.load_state_dict(state | {"bias": waves(4 if concat else 2, shift=5)})
    return conv


# torch_geometric.nn.GATConv 2.8.1 with these weights, on the edges from j to i of the graph
OUT = [
    [-0.501974625, -0.874831165, 0.865261271, 0.746484436],
    [-0.626248339, -0.670457139, 0.0992519236, 1.64739078],
    [-0.730468664, -0.589469576, 0.676963905, 0.994260825],
    [-1.18864017, 0.169151096, -0.00145262793, 1.84449144],
]
MEAN = [[-0.62631211, -0.69856024], [-1.07145364, -0.14592005], [-0.83470782, -0.43199125], [-1.40300184, 0.3724344]]
ATTENTION = [  # of the first head
    [0.49376497, 0.14143769, 0.36479734, 0.0],
    [0.67541593, 0.32458407, 0.0, 0.0],
    [0.0, 0.0, 0.69967146, 0.30032854],
    [0.0, 0.0, 0.0, 1.0],
]


@pytest.mark.parametrize(("concat", "expected"), [(True, OUT), (False, MEAN)])
def test_numbers_of_pytorch_geometric(concat, expected):
    out, attention = layer(concat=concat)(waves(4, 3, shift=1), GRAPH)
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(attention[0], torch.tensor(ATTENTION, dtype=torch.float64), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, dtype=torch.float64))


def test_order_of_the_nodes():
    conv, x, order = layer(), waves(4, 3, shift=1), torch.tensor([2, 0, 3, 1])
    out, attention = conv(x, GRAPH)
    permuted, permuted_attention = conv(x[order], GRAPH[order][:, order])
    torch.testing.assert_close(permuted, out[order])
    torch.testing.assert_close(permuted_attention, attention[:, order][:, :, order])


def test_without_edges_it_is_linear():
    conv, x = layer(), waves(4, 3, shift=1)
    out, attention = conv(x, torch.zeros(4, 4, dtype=torch.bool))
    torch.testing.assert_close(out, x @ conv.weight.T + conv.bias)
    assert torch.equal(attention, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))


def test_gradients_and_dropout():
    conv, x = layer(), waves(4, 3, shift=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: conv(x, GRAPH)[0], (x,))
    conv.dropout = 0.5
    torch.manual_seed(0)
    assert not torch.equal(conv(x, GRAPH)[0], conv.eval()(x, GRAPH)[0])
    torch.testing.assert_close(conv(x, GRAPH)[0], layer()(x, GRAPH)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GATConv(0, 2), "must be at least 1, got 0, 2 and 1"),
        (lambda: GATConv(3, 2, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: GATConv(3, 2)(torch.zeros(4, 2), GRAPH), r"x must be \[N, 3\], got \(4, 2\)"),
        (lambda: GATConv(3, 2)(torch.zeros(4, 3), GRAPH.float()), r"must be bool \[4, 4\], got torch.float32"),
        (lambda: GATConv(3, 2)(torch.zeros(5, 3), GRAPH), r"must be bool \[5, 5\], got torch.bool \(4, 4\)"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
