import pytest
import torch

from leyden.weights import concatenate_heads


def test_by_hand():
    first = torch.tensor([[2.0, 4.0]]), torch.tensor([1.0])
    second = torch.tensor([[6.0]]), torch.tensor([5.0])
    weight, bias = concatenate_heads([first, second])
    assert weight.tolist() == [[1.0, 2.0, 3.0]]
    assert bias.tolist() == [3.0]
    assert first[0].tolist() == [[2.0, 4.0]]


def test_logits_are_the_mean_of_those_of_the_heads():
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 5, 1)
    heads = [tuple(torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, d), (4,))) for d in sizes]
    features = [torch.randn(6, d, generator=generator, dtype=torch.float64) for d in sizes]
    expected = sum(x @ w.T + b for x, (w, b) in zip(features, heads, strict=True)) / 3
    weight, bias = concatenate_heads(heads)
    torch.testing.assert_close(torch.cat(features, 1) @ weight.T + bias, expected)


def test_bad_input():
    with pytest.raises(ValueError, match="heads must hold at least one head"):
        concatenate_heads([])
    with pytest.raises(ValueError, match=r"heads\[1\] must be a weight \[2, D\] and a bias \[2\], got \[3, 4\] and"):
        concatenate_heads([(torch.ones(2, 4), torch.ones(2)), (torch.ones(3, 4), torch.ones(3))])
