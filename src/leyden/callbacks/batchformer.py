"""BatchFormer beside any network (Z. Hou, B. Yu, D. Tao, "BatchFormer: Learning to Explore Sample Relationships for
Robust Representation Learning", 2022, arXiv 2203.01522)."""

from dataclasses import replace

from leyden.core import Batch, Method, MethodCallback, Outputs, Terms
from leyden.nn import BatchFormer

__all__ = ["BatchFormerBranch"]


class BatchFormerBranch(MethodCallback):
    """Adds ``batchformer``, the method's own ``task`` on features that have attended to the others of the batch.

    An attached encoder, `leyden.nn.BatchFormer`, stands in a second branch between features and head, which both
    branches share. Evaluation knows the plain branch alone. The authors take one mean over both: with a weight of 1 the
    loss is twice theirs, so SGD wants half the learning rate. Each process attends to its own share of a micro-batch.

    Args:
        heads: of the attention; they divide the size of the features.
        dropout: rate in the encoder.
        weight: factor of the term.

    Raises:
        ValueError: ``weight`` is negative; when a fit is set up, also if another argument does not fit.
    """

    def __init__(self, heads: int = 4, dropout: float = 0.5, weight: float = 1.0) -> None:
        if not weight >= 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.heads = heads
        self.dropout = dropout
        self.weight = weight
        self._former: BatchFormer | None = None

    def build(self, method: Method) -> None:
        """Attaches the encoder."""
        self._former = BatchFormer(method.network.feature_dim, self.heads, dropout=self.dropout)
        method.attach(self.state_key, self._former)

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``batchformer``."""
        assert self._former is not None
        assert outputs.features is not None
        features = self._former.encode(outputs.features)
        encoded = replace(outputs, features=features, logits=method.network.head(features))
        return terms | {"batchformer": self.weight * method.loss_terms(batch, encoded)["task"]}
