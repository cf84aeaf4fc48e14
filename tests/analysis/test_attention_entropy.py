import math

import pytest
import torch

from leyden.analysis import attention_entropy, attention_entropy_bound


def test_numbers_by_hand():
    attn = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)  # entropies log 2 and 0
    uniform = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    heads = torch.stack([attn, uniform, torch.eye(3, dtype=torch.float64)[:2]]).expand(4, 3, 2, 3)
    assert attention_entropy(heads).tolist() == pytest.approx([math.log(2) / 2, math.log(3), 0.0])
    assert attention_entropy(heads.half()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"attn must have the shape \[N, H, T, S\], got \(2, 3\)"):
        attention_entropy(attn)


@pytest.mark.parametrize("tokens", [2, 5, 64])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0, 20.0])
def test_bound_is_reached_and_never_passed(sigma, tokens):
    bound = attention_entropy_bound(sigma, tokens)
    peak = torch.full((tokens,), -1.0, dtype=torch.float64)
    peak[0] = tokens - 1.0  # one above the others, sum 0

    def entropy(logits):
        return attention_entropy(
            (sigma * logits / logits.norm(dim=-1, keepdim=True)).softmax(-1).view(1, -1, 1, tokens)
        )

    assert entropy(peak).item() == pytest.approx(bound, rel=1e-9, abs=1e-12)
    others = torch.randn(500, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert entropy(others).min().item() >= bound - 1e-12
    if sigma == 0.0:
        assert bound == pytest.approx(math.log(tokens))


def test_bad_input():
    with pytest.raises(ValueError, match="sigma must be at least 0, got -1"):
        attention_entropy_bound(-1.0, 4)
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        attention_entropy_bound(1.0, 1)
