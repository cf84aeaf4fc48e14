import math

import pytest
import torch

from leyden.analysis import attention_entropy
from leyden.metrics import AttentionEntropy, MaxAttentionLogit


def test_entropy_is_the_mean_over_all_queries():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, t, 5, generator=generator).softmax(-1) for n, t in ((2, 4), (1, 7), (5, 1))]
    metric = AttentionEntropy(3)
    for batch in batches:
        metric.update(batch)
    rows = torch.cat([batch.transpose(1, 2).flatten(0, 1) for batch in batches]).transpose(0, 1).unsqueeze(0)
    torch.testing.assert_close(metric.compute(), attention_entropy(rows))
    metric.reset()
    metric.update(torch.full((1, 3, 2, 8), 0.125))
    assert metric.compute().tolist() == pytest.approx([math.log(8)] * 3)
    with pytest.raises(ValueError, match=r"attn must have the shape \[N, 3, T, S\], got \(1, 2, 2, 8\)"):
        metric.update(torch.full((1, 2, 2, 8), 0.125))
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        AttentionEntropy(0)


def test_largest_logit():
    metric = MaxAttentionLogit()
    metric.update(torch.tensor([[[[0.5, -torch.inf], [-7.0, 3.0]]]]))
    metric.update(torch.tensor([[[[1.0]]]], dtype=torch.bfloat16))
    assert metric.compute().item() == 3.0
    metric.reset()
    metric.update(torch.full((1, 1, 1, 2), -4.0))
    assert metric.compute().item() == -4.0


def processes(_):
    rank = torch.distributed.get_rank()
    metrics = AttentionEntropy(1), MaxAttentionLogit()
    metrics[0].update(torch.full((1 + rank, 1, 1, 2**rank), 0.5**rank))
    metrics[1].update(torch.tensor([[[[float(rank)]]]]))
    return [metric.compute().item() for metric in metrics]


def test_over_two_processes(run_processes):
    for entropy, largest in run_processes(processes, 2, None):
        assert entropy == pytest.approx(2 * math.log(2) / 3)
        assert largest == 1.0
