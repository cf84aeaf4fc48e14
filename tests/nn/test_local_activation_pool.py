import pytest
import torch

from leyden.nn import LocalActivationPool

QUERY = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
KEYS = torch.arange(1, 13, dtype=torch.float64).cos().view(2, 3, 2)
MASK = torch.tensor([[True, True, True], [True, True, False]])
# shenweichen/DeepCTR-Torch at f685425: AttentionSequencePoolingLayer((3, 2), "sigmoid", weight_normalization,
# embedding_dim=2) in float64, the lengths 3 and 2, all parameters in their order set to sin(0), sin(1), ...
PORT = {
    False: [[0.3163578622719917, 0.17591840204031262], [0.30307720969555896, 1.564475021421841]],
    True: [[-0.0363216811467076, -0.035167215756945314], [-0.05010640473892286, -0.4804109033880502]],
}


def make(normalize):
    pool = LocalActivationPool(2, (3, 2), normalize=normalize).double()
    start = 0
    for p in pool.parameters():
        p.data = torch.arange(start, start + p.numel(), dtype=torch.float64).sin().view_as(p)
        start += p.numel()
    return pool


@pytest.mark.parametrize("normalize", [False, True])
def test_numbers_of_the_port(normalize):
    expected = torch.tensor(PORT[normalize], dtype=torch.float64)
    torch.testing.assert_close(make(normalize)(QUERY, KEYS, MASK), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_order_and_padding_of_keys_are_irrelevant(normalize):
    pool = make(normalize)
    expected = pool(QUERY, KEYS, MASK)
    torch.testing.assert_close(pool(QUERY, KEYS[:, [2, 0, 1]], MASK[:, [2, 0, 1]]), expected)
    padded = KEYS.clone()
    padded[1, 2] = 1e3
    padded.requires_grad_()
    found = pool(QUERY, padded, MASK)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert not padded.grad[1, 2].any()
    assert padded.grad[MASK].all()


def test_softmax_of_one_key_is_that_key():
    torch.testing.assert_close(make(True)(QUERY, KEYS[:, :1], MASK[:, :1]), KEYS[:, 0])


@pytest.mark.parametrize("normalize", [False, True])
def test_no_key_gives_zeros_and_no_nan_gradient(normalize):
    pool = make(normalize)
    found = pool(QUERY, KEYS, torch.tensor([[False] * 3, [True] * 3]))
    assert not found[0].any()
    assert found[1].all()
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in pool.parameters())
    assert pool(QUERY, KEYS[:, :0], MASK[:, :0]).tolist() == [[0.0, 0.0]] * 2


def test_half_precision_is_close():
    pool = make(True).float()
    expected = pool(QUERY.float(), KEYS.float(), MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pool(QUERY.float(), KEYS.float(), MASK).float(), expected, rtol=0.0, atol=0.02)


def test_bad_input_is_refused():
    pool = LocalActivationPool(2).double()
    with pytest.raises(ValueError, match=r"dim and hidden must be sizes of 1 or more, got 2 and \(0,\)"):
        LocalActivationPool(2, (0,))
    for query, keys in ((QUERY[:1], KEYS), (QUERY, KEYS[:, 0]), (QUERY[:, :1], KEYS[:, :, :1])):
        with pytest.raises(ValueError, match=r"query and keys must have shapes \[N, 2\] and \[N, T, 2\], got"):
            pool(query, keys, MASK)
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 3\) as the keys, got torch.int64 \(2, 3\)"):
        pool(QUERY, KEYS, MASK.long())
    with pytest.raises(ValueError, match="mask must be bool"):
        pool(QUERY, KEYS, MASK[:1])
