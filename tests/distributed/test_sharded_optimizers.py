"""Optimizers on modules that FSDP2 shares between two processes, rows that cannot be shared evenly among them."""

from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

from leyden.optim import SPAM, AdaGradNorm, AdaptiveObGD, Lamb, Lars, ObGD, Root, Sophia, StableSPAM

STEPS = 12
OPTIMIZERS = {
    "adagrad_norm": partial(AdaGradNorm, lr=1.0, momentum=0.5, weight_decay=0.1),
    "adagrad_norm_row": partial(AdaGradNorm, lr=0.5, momentum=0.5, granularity="row"),
    "lamb": partial(Lamb, lr=0.02, weight_decay=0.1),
    "lars": partial(Lars, lr=3.0, weight_decay=0.1),
    "root": partial(Root, lr=0.02, quantile=0.8),
    "sophia": partial(Sophia, lr=0.02),
    "spam": partial(
        SPAM, lr=0.02, weight_decay=0.1, threshold=2.0, reset_interval=8, warmup_steps=3, accumulate_steps=2
    ),
    "stable_spam": partial(StableSPAM, lr=0.02, weight_decay=0.1, reset_interval=7, total_steps=20),
    "obgd": ObGD,
    "adaptive_obgd": AdaptiveObGD,
}


def train(name, rank=None, steps=STEPS):
    """Trains a network whole, or its shards with this process's half of each batch; returns the weights."""
    torch.manual_seed(0)
    # 5 rows are 3 and 2, 1 row is 1 and 0
    network = nn.Sequential(
        nn.Conv2d(1, 5, 2), nn.Flatten(), nn.Linear(45, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 1)
    ).double()
    x, y = torch.randn(STEPS, 8, 1, 4, 4, dtype=torch.float64), torch.randn(STEPS, 8, 1, dtype=torch.float64)
    if rank is not None:
        mesh = init_device_mesh("cpu", (2,))
        for layer in (network[0], network[2], network[5]):
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        x, y = (tensor.unflatten(1, (2, 4))[:, rank] for tensor in (x, y))
    optimizer = OPTIMIZERS[name](network.parameters())
    for step in range(steps):
        scale = 100.0 if step % 5 == 4 else 1.0
        (scale * (network(x[step]) - y[step]).square().mean()).backward()
        optimizer.step(**({"delta": 0.3 * step, "reset": step == 6} if isinstance(optimizer, ObGD) else {}))
        if isinstance(optimizer, Sophia) and step % 3 == 2:
            optimizer.update_hessian(batch_size=8)
        optimizer.zero_grad()
    return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in network.parameters()]


def train_all_shared():
    rank = torch.distributed.get_rank()
    return {name: train(name, rank) for name in OPTIMIZERS}


def test_shards_end_as_whole_weights(run_processes):
    results = run_processes(train_all_shared, 2)
    for name in OPTIMIZERS:
        whole, start = train(name), train(name, steps=0)
        assert all(not torch.equal(p, before) for p, before in zip(whole, start, strict=True)), name
        for weights in results:
            for p, expected in zip(weights[name], whole, strict=True):
                torch.testing.assert_close(
                    p, expected, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
                )
