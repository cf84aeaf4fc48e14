"""Graph attention (P. Veličković et al., "Graph Attention Networks", 2018, arXiv 1710.10903, equations 1 to 6)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GATConv"]


class GATConv(nn.Module):
    """Graph attention over a dense adjacency: every node takes a weighted mean of its neighbours and itself.

    Args:
        in_features: F, size of the features of a node.
        out_features: size of a head's output.
        heads: number of attention heads.
        concat: whether the heads' outputs are put beside each other; their mean is taken otherwise.
        negative_slope: of the LeakyReLU on the scores.
        dropout: rate, of the attention weights.

    Raises:
        ValueError: a size is below 1, or the rate outside [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        heads: int = 1,
        *,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_features, out_features, heads) < 1:
            raise ValueError(
                f"in_features, out_features and heads must be at least 1, got {in_features}, {out_features} and {heads}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.in_features, self.heads, self.concat = in_features, heads, concat
        self.negative_slope, self.dropout = negative_slope, dropout
        self.weight = nn.Parameter(torch.empty(heads * out_features, in_features))
        self.att_src = nn.Parameter(torch.empty(heads, out_features))
        self.att_dst = nn.Parameter(torch.empty(heads, out_features))
        self.bias = nn.Parameter(torch.zeros(heads * out_features if concat else out_features))
        for parameter in (self.weight, self.att_src, self.att_dst):
            nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the outputs and the attention weights.

        Args:
            x: features of the nodes, ``[N, F]``.
            adjacency: bool ``[N, N]``; row i says which nodes i sees beside itself.

        Returns:
            ``[N, heads * out_features]``, or ``[N, out_features]`` without ``concat``; and ``[heads, N, N]``, whose
            entry ``[h, i, j]`` is the weight of j in the sum of i.

        Raises:
            ValueError: the shapes do not fit, or the adjacency is not bool.
        """
        count = len(x)
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must be [N, {self.in_features}], got {tuple(x.shape)}")
        if adjacency.shape != (count, count) or adjacency.dtype != torch.bool:
            raise ValueError(
                f"adjacency must be bool [{count}, {count}], got {adjacency.dtype} {tuple(adjacency.shape)}"
            )
        hidden = functional.linear(x, self.weight).view(count, self.heads, -1).transpose(0, 1)  # [H, N, D]
        seeing, seen = ((hidden * weight.unsqueeze(1)).sum(-1) for weight in (self.att_dst, self.att_src))  # [H, N]
        scores = functional.leaky_relu(seeing.unsqueeze(2) + seen.unsqueeze(1), self.negative_slope)  # [H, N, N]
        sees = adjacency | torch.eye(count, dtype=torch.bool, device=x.device)
        wide = torch.promote_types(scores.dtype, torch.float32)
        attention = scores.to(wide).masked_fill(~sees, -torch.inf).softmax(-1).to(hidden.dtype)
        out = functional.dropout(attention, self.dropout, self.training) @ hidden  # [H, N, D]
        out = out.transpose(0, 1).flatten(1) if self.concat else out.mean(0)
        return out + self.bias, attention
