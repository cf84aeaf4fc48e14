import math
from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import AttentionMonitor
from leyden.core import Batch, Method, MethodCallback, Outputs, Terms
from leyden.data import Digits, PydocTopics
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, MLP, ViT
from leyden.plugins import CSVLogger


class Reference(MethodCallback):
    """Largest logit and least entropy of the batch, computed head by head from the weights."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    @torch.no_grad()
    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        network, logits, entropies = method.network, [], []
        x = network.token_embedding(batch["input"]) + network.position_embedding.weight
        for block in network.blocks:
            inner, layer = block.norm1(x), block.attention
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                q, k = inner @ layer.q_proj.weight[part].T, inner @ layer.k_proj.weight[part].T
                q, k = q + layer.q_proj.bias[part], k + layer.k_proj.bias[part]
                for row in range(q.shape[0]):
                    of_queries = []
                    for t in range(q.shape[1]):
                        scores = (k[row, : t + 1] @ q[row, t]) / 2.0
                        logits.append(scores.max().item())
                        of_queries.append(-(scores.softmax(0) * scores.log_softmax(0)).sum().item())
                    entropies.append((len(entropies) // len(q), sum(of_queries) / len(of_queries)))
            x = block(x)
        heads = [sum(e for h, e in entropies if h == head) / len(batch["input"]) for head in range(4)]
        self.seen.append((max(logits), min(heads)))
        return terms


def rows(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    table = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    return [row for row in table if row["train/max_attention_logit"]]


def test_values_in_logged_steps_only(make_trainer, tmp_path):
    torch.manual_seed(0)
    network = GPT(256, 6, dim=8, depth=2, num_heads=2)
    with torch.no_grad():
        for block in network.blocks:
            block.attention.q_proj.weight.mul_(40.0)
            block.attention.k_proj.weight.mul_(40.0)
    reference = Reference()
    logger = CSVLogger(str(tmp_path))
    trainer = make_trainer(
        AttentionMonitor(),
        reference,
        max_steps=4,
        max_epochs=-1,
        log_every_n_steps=2,
        logger=logger,
        limit_val_batches=0,
    )
    method = LanguageModeling(network, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer.fit(method, datamodule=PydocTopics(context=6, batch_size=3))
    found = [(float(r["train/max_attention_logit"]), float(r["train/min_attention_entropy"])) for r in rows(tmp_path)]
    assert len(found) == 2
    for values, expected in zip(found, reference.seen[1::2], strict=True):
        assert values == pytest.approx(expected, rel=1e-4)
    assert not any(block.attention._forward_hooks for block in network.blocks)


def test_changes_nothing_and_watches_a_vit(make_trainer, tmp_path):
    weights = []
    for callbacks in ((), (AttentionMonitor(),)):
        torch.manual_seed(0)
        method = Classification(ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2, dropout=0.3, qk_norm=True))
        logger = CSVLogger(str(tmp_path / str(len(weights))))
        trainer = make_trainer(*callbacks, max_steps=3, logger=logger, limit_val_batches=0)
        trainer.fit(method, datamodule=Digits(batch_size=8, seed=0))
        weights.append(method.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    (values, *_) = rows(tmp_path / "1")
    assert float(values["train/min_attention_entropy"]) == pytest.approx(math.log(5), rel=0.5)
    assert float(values["train/max_attention_logit"]) <= 2.0 + 1e-4  # sqrt(head_dim), with the scales still at 1


def test_a_network_without_attention_is_refused(make_trainer):
    with pytest.raises(MisconfigurationException, match="AttentionMonitor watches .* but MLP has none: remove it"):
        make_trainer(AttentionMonitor(), max_steps=1).fit(Classification(MLP(64, 10, (4,))), datamodule=Digits())
