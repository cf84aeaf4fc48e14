"""GAIS: samples that a graph attention network looks at (Z. Rustamov, A. Zaitouny, N. Zaki, "Scalable Graph
Attention-based Instance Selection via Mini-Batch Sampling and Hierarchical Hashing", 2025, arXiv 2502.20293).

The authors' code is not published. Unverified are the rule that picks by the scores, how a sample that no other sees is
scored, and how the network is trained. Scores by confidence are those of the first GAIS (2024, arXiv 2412.19201).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.batch import Batch
from leyden.curation.curation import Curation
from leyden.data.dataset import all_samples
from leyden.data.module import DataModule
from leyden.data.sample_graph import distance_graph, hyperplane_hash, stratified_batches
from leyden.nn.gat import GATConv

__all__ = ["GAIS"]


class GAIS(Curation):
    """Keeps a share of each class: the samples to which a graph attention network pays most attention.

    The network learns the classes on graphs of batches, which hold the classes in their shares. Equal samples count
    once. The result depends on the seed.

    Args:
        hidden: features of a head.
        heads: attention heads of each of the two layers.
        keep: share of the samples of a class that is kept, rounded up.
        graph: ``"distance"`` connects the nearest pairs of a batch, ``"hash"`` those in one cell of random hyperplanes.
        batch_size: samples in a batch, at most; attention takes its square of memory.
        quantile: share of the pairs of a batch that a graph of distances connects.
        bits: hyperplanes of a graph of hashes; of several numbers (levels), pairs of any are connected.
        views: draws of hyperplanes for each number; pairs of any are connected.
        score: ``"attention"`` a sample gets from each that sees it, in the mean; or the ``"confidence"`` of its
            prediction.
        epochs: of the training.
        lr: of Adam.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        hidden: int = 64,
        heads: int = 4,
        keep: float = 0.04,
        graph: str = "distance",
        batch_size: int = 256,
        *,
        quantile: float = 0.1,
        bits: int | Sequence[int] = 8,
        views: int = 1,
        score: str = "attention",
        epochs: int = 30,
        lr: float = 5e-3,
    ) -> None:
        bits = [bits] if isinstance(bits, int) else list(bits)
        counts = {"hidden": hidden, "heads": heads, "batch_size": batch_size, "views": views, "epochs": epochs}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, share in {"keep": keep, "quantile": quantile}.items():
            if not 0.0 < share <= 1.0:
                raise ValueError(f"{name} must lie in (0, 1], got {share}")
        if graph not in ("distance", "hash"):
            raise ValueError(f"graph must be 'distance' or 'hash', got {graph!r}")
        if score not in ("attention", "confidence"):
            raise ValueError(f"score must be 'attention' or 'confidence', got {score!r}")
        if not bits or not all(1 <= number <= 62 for number in bits):
            raise ValueError(f"bits must lie in 1..62, got {bits}")
        if not lr > 0.0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.hidden, self.heads = hidden, heads
        self.keep = keep
        self.graph = graph
        self.batch_size = batch_size
        self.quantile = quantile
        self.bits, self.views = bits, views
        self.score = score
        self.epochs, self.lr = epochs, lr

    def __call__(self, data: DataModule) -> dict[str, Tensor]:
        """Returns the samples that are kept, class by class, the best first, and their ``source_index`` ``[S]``.

        Raises:
            ValueError: the targets are no class numbers, or all of one class.
        """
        samples = all_samples(data.dataset("train"))
        inputs, targets = samples["input"].flatten(1).float(), samples["target"]
        if targets.ndim != 1 or targets.is_floating_point():
            raise ValueError(f"GAIS needs class numbers [S] as targets, got {targets.dtype} {tuple(targets.shape)}")
        if targets.min() == targets.max():
            raise ValueError(f"GAIS learns to tell classes apart, but all targets are {int(targets[0])}")
        rows = _first_of_equals(torch.cat([inputs, targets.unsqueeze(1)], 1))
        std, mean = torch.std_mean(inputs[rows], 0)
        batch = {"x": (inputs[rows] - mean) / std.where(std > 0.0, 1.0), "target": targets[rows]}
        scores = self._scores(batch, data.seed)
        order = scores.argsort(stable=True, descending=True)
        parts = []
        for number in targets.unique().tolist():
            member = order[batch["target"][order] == number]
            count = max(1, math.ceil(self.keep * len(member) - 1e-9))  # 0.07 * 100 is a little more than 7
            parts.append(member[:count])
        kept = rows[torch.cat(parts)]
        return {"input": samples["input"][kept], "target": targets[kept], "source_index": kept}

    @torch.enable_grad()
    def _scores(self, batch: Batch, seed: int) -> Tensor:
        """Trains on the batches, and scores all samples, ``[S]``."""
        generator = torch.Generator().manual_seed(seed)
        parts = stratified_batches(batch["target"], self.batch_size, seed=seed)
        graphs = self._graphs(batch["x"], parts, generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Classifier(batch["x"].shape[1], self.hidden, self.heads, int(batch["target"].max()) + 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        for step in self.steps(self.epochs * len(parts), {"network": network, "optimizer": optimizer}):
            number = step % len(parts)
            logits, _ = network(batch["x"][parts[number]], graphs[number])
            optimizer.zero_grad()
            functional.cross_entropy(logits, batch["target"][parts[number]]).backward()
            optimizer.step()
        scores = torch.zeros(len(batch["x"]))
        with torch.no_grad():
            for rows, graph in zip(parts, graphs, strict=True):
                logits, attention = network(batch["x"][rows], graph)
                if self.score == "confidence":
                    scores[rows] = logits.softmax(-1).amax(-1)
                else:
                    scores[rows] = _received_attention(attention, graph)
        return scores

    def _graphs(self, x: Tensor, parts: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        if self.graph == "distance":
            return [distance_graph(x[rows], quantile=self.quantile) for rows in parts]
        draws = [bits for bits in self.bits for _ in range(self.views)]
        cells = torch.stack([hyperplane_hash(x, bits, generator=generator) for bits in draws], 1)  # [S, draws]
        graphs = []
        for rows in parts:
            same = (cells[rows].unsqueeze(1) == cells[rows].unsqueeze(0)).any(-1)
            graphs.append(same & ~torch.eye(len(rows), dtype=torch.bool))
        return graphs


class _Classifier(nn.Module):
    def __init__(self, num_features: int, hidden: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.first = GATConv(num_features, hidden, heads)
        self.second = GATConv(heads * hidden, hidden, heads)
        self.head = nn.Linear(heads * hidden, num_classes)

    def forward(self, x: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.elu(self.first(x, graph)[0])
        x, attention = self.second(x, graph)
        return self.head(functional.elu(x)), attention


def _received_attention(attention: Tensor, graph: Tensor) -> Tensor:
    """Mean attention of those that see a sample, itself among them, over the heads; 0 if no other does."""
    seen_by = graph.sum(0)
    return (attention.mean(0).sum(0) / (seen_by + 1)).where(seen_by > 0, 0.0)


def _first_of_equals(rows: Tensor) -> Tensor:
    """Positions of the rows that none before is equal to, in order."""
    _, group = rows.unique(dim=0, return_inverse=True)
    first = torch.full_like(group, len(rows)).scatter_reduce(0, group, torch.arange(len(rows)), "amin")
    return first[first < len(rows)].sort().values
