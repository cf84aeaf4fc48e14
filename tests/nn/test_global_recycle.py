import pytest
import torch

from leyden.nn import GlobalRecycle


def wave(*shape, phase):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase).view(shape)


def small(**knobs):
    module = GlobalRecycle(
        3, **({"num_tokens": 2, "heads": 2, "head_dim": 2, "dropout": 0.0, "momentum": 0.9} | knobs)
    ).double()
    with torch.no_grad():
        module.to_kv.weight.copy_(wave(8, 3, phase=0.1))
        module.to_q.weight.copy_(wave(4, 3, phase=0.2))
        module.to_out.weight.copy_(wave(3, 4, phase=0.3))
        module.to_out.bias.copy_(wave(3, phase=0.4))
        module.query.copy_(wave(1, 2, 3, phase=0.5))
    return module


# Printed by Merge of the authors' code, DearCaat/MHIM-MIL at 9d0c91a, modules/mhim_modules/merge.py, for these weights.
X = wave(1, 5, 3, phase=0.6)
ALL, KEYS = torch.ones(1, 5, dtype=torch.bool), torch.tensor([7])
TOKENS = [
    [0.362109730902141, 0.7699954193418582, 1.229573439288286],
    [0.4607252011059799, 1.0150381540077174, 0.6691884910430178],
]
QUERY = [
    [0.4676939578339968, 0.9158347193046895, 0.9746274228475017],
    [0.510023754749916, -0.040467309328151686, -0.6142033966728336],
]


def test_numbers_of_the_authors_code():
    module = small(keep_ratio=0.0).eval()
    before = module.query.clone()
    out, mask = module(X, ALL, KEYS)
    assert mask.all()
    assert mask.shape == (1, 7)
    assert torch.equal(out[:, :5], X)
    assert torch.allclose(out[0, 5:], torch.tensor(TOKENS, dtype=torch.float64), rtol=0.0, atol=1e-12)
    assert torch.equal(module.query, before)
    out, mask = module.train()(X, ALL, KEYS)
    assert mask.tolist() == [[False] * 5 + [True] * 2]
    assert torch.allclose(out[0, 5:], torch.tensor(TOKENS, dtype=torch.float64), rtol=0.0, atol=1e-12)
    assert torch.allclose(module.query[0], torch.tensor(QUERY, dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_masked_instances_are_as_if_they_were_not_there():
    module = small().eval()
    mask = torch.tensor([[True, False, True, True, False]])
    assert torch.allclose(module.recycle(X, mask), module.recycle(X[:, mask[0]]))
    assert torch.allclose(module.recycle(X, ~mask & mask), module.to_out.bias.expand(1, 2, 3))


def test_a_random_share_is_kept_and_the_rest_summed_up():
    module = small(keep_ratio=0.7, momentum=1.0).train()
    x, mask = wave(1, 9, 3, phase=0.0), torch.tensor([[True] * 7 + [False] * 2])
    kept = []
    for seed in range(20):
        out, here = module(x, mask, torch.tensor([seed]))
        assert here[0, :9].sum() == 4  # of 0.7 * 7
        assert not (here[:, :9] & ~mask).any()
        assert torch.allclose(out[:, 9:], module.recycle(x, mask & ~here[:, :9]))
        kept.append(here[0, :7])
    assert torch.stack(kept).any(0).all()
    assert torch.equal(module.query, wave(1, 2, 3, phase=0.5))  # momentum 1


def test_padding_changes_nothing():
    alone, padded = small(keep_ratio=0.5).train(), small(keep_ratio=0.5).train()
    out, here = alone(X, ALL, KEYS)
    pad = torch.nn.functional.pad
    out_2, here_2 = padded(pad(X, (0, 0, 0, 3), value=9.0), pad(ALL, (0, 3)), KEYS)
    assert here_2[0, [0, 1, 2, 3, 4, 8, 9]].tolist() == here[0].tolist()
    assert not here_2[0, 5:8].any()
    assert torch.allclose(out_2[:, 8:], out[:, 5:])
    assert torch.allclose(padded.query, alone.query)


def test_queries_follow_the_mean_over_bags():
    module = small(keep_ratio=0.0, momentum=0.75).train()
    tokens = module(wave(3, 5, 3, phase=0.6), ALL.expand(3, 5), torch.arange(3))[0][:, 5:]
    assert torch.allclose(module.query, 0.75 * wave(1, 2, 3, phase=0.5) + 0.25 * tokens.mean(0))


def test_the_mean_over_bags_has_32_bits_under_autocast():
    module = small(keep_ratio=0.0, momentum=0.0).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = module(wave(3, 5, 3, phase=0.6).float(), ALL.expand(3, 5), torch.arange(3))[0][:, 5:]
    assert torch.allclose(module.query, tokens.float().mean(0), rtol=1e-6, atol=0.0)


def test_the_order_of_instances_does_not_matter():
    module, order = small().eval(), torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(module(X[:, order], ALL, KEYS)[0][:, 5:], module(X, ALL, KEYS)[0][:, 5:])


def test_queries_get_no_gradient_and_are_saved():
    module = small(keep_ratio=0.5).train()
    module(X, ALL, KEYS)[0].sum().backward()
    assert module.to_q.weight.grad is not None
    assert "query" in module.state_dict()
    assert not module.query.requires_grad


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"num_tokens": 0}, "num_tokens must be at least 1, got 0"), ({"keep_ratio": 1.5}, "keep_ratio must lie in")],
)
def test_bad_arguments(knobs, message):
    with pytest.raises(ValueError, match=message):
        small(**knobs)
