import pytest
import torch
from torch import nn

from leyden.losses import minibatch_aware_l2

WEIGHT = torch.tensor([[3.0, 4.0], [1.0, 2.0], [0.5, -0.5], [2.0, 0.0]], dtype=torch.float64)


def test_value_and_gradient_by_hand():
    weight = WEIGHT.clone().requires_grad_()
    counts = torch.tensor([7.0, 2.0, 5.0, 4.0])
    value = minibatch_aware_l2(weight, torch.tensor([[3, 1], [3, 3]]), counts)
    assert value.item() == 0.5 * (5.0 / 2.0 + 4.0 / 4.0)  # rows 1 and 3, each once
    value.backward()
    assert weight.grad.tolist() == [[0.0, 0.0], [0.5, 1.0], [0.0, 0.0], [0.5, 0.0]]  # equation 7: w_j / n_j


def test_all_ids_of_count_one_are_half_the_squared_norm():
    value = minibatch_aware_l2(WEIGHT, torch.tensor([2, 0, 3, 1, 0]), torch.ones(4))
    torch.testing.assert_close(value, 0.5 * WEIGHT.square().sum())


def test_an_epoch_of_one_lookup_per_batch_sums_up_to_the_plain_penalty():
    """Equations 4 and 5: where no batch holds an id twice."""
    epoch = torch.tensor([[0, 1, 2], [3, 1, 0], [0, 2, 3], [1, 3, 0]])
    counts = torch.bincount(epoch.flatten())
    total = sum(minibatch_aware_l2(WEIGHT, batch, counts) for batch in epoch)
    torch.testing.assert_close(total, 0.5 * WEIGHT.square().sum())


def test_an_infinite_count_takes_padding_out():
    weight = WEIGHT.clone().requires_grad_()
    value = minibatch_aware_l2(weight, torch.tensor([0, 1, 0]), torch.tensor([torch.inf, 1.0, 1.0, 1.0]))
    assert value.item() == 2.5
    value.backward()
    assert weight.grad[0].tolist() == [0.0, 0.0]


def test_sparse_gradient():
    ids, counts = torch.tensor([3, 1, 3]), torch.tensor([7.0, 2.0, 5.0, 4.0])
    gradients = []
    for sparse in (False, True):
        weight = WEIGHT.clone().requires_grad_()
        minibatch_aware_l2(weight, ids, counts, sparse=sparse).backward()
        assert weight.grad.is_sparse == sparse
        gradients.append(weight.grad.to_dense())
    assert torch.equal(*gradients)


def test_gradcheck():
    weight, counts = WEIGHT.clone().requires_grad_(), torch.tensor([7.0, 2.0, 5.0, 4.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: minibatch_aware_l2(w, torch.tensor([1, 1, 2]), counts), (weight,))


def test_no_ids_and_dtypes():
    assert minibatch_aware_l2(WEIGHT, torch.zeros(0, 3, dtype=torch.int64), torch.ones(4)).item() == 0.0
    value = minibatch_aware_l2(1e3 * WEIGHT.half(), torch.arange(4), torch.ones(4))
    assert value.dtype == torch.float32
    assert value.item() == 0.5e6 * WEIGHT.square().sum()
    assert minibatch_aware_l2(WEIGHT.float(), torch.arange(4), torch.ones(4).double()).dtype == torch.float32


def test_bad_input_is_refused():
    counts, ids = torch.ones(4), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"shapes \[V, D\] and \[V\], got \(4, 2\) and \(3,\)"):
        minibatch_aware_l2(WEIGHT, ids, counts[:3])
    with pytest.raises(ValueError, match="index must hold integers, got torch.float32"):
        minibatch_aware_l2(WEIGHT, ids.float(), counts)
    with pytest.raises(ValueError, match="counts must be positive for all ids of the batch, but is not for 2"):
        minibatch_aware_l2(WEIGHT, ids, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(IndexError):
        minibatch_aware_l2(nn.Embedding(4, 2).weight, torch.tensor([4]), counts)
