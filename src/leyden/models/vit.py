"""Vision transformer (A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, equations 1-4)."""

import torch
from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive
from leyden.models._init import init_weights
from leyden.models.transformer import TransformerBlock

__all__ = ["ViT"]


class ViT(Network):
    """Vision transformer: pre-norm, with a class token and learned positions.

    The defaults are those of ViT-Ti. Linear layers, positions and class token start from N(0, 0.02^2), biases from zero
    (H. Touvron et al., "Training data-efficient image transformers", ICML 2021).

    Args:
        image_size: height and width of an image, a multiple of ``patch_size``.
        patch_size: height and width of a patch.
        num_classes: C.
        in_channels: channels of an image.
        dim: D, a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden units of each MLP, over D.
        dropout: rate of dropout after the positions, on attention weights, and on each branch of a block.
        qk_norm: normalise queries and keys, as `leyden.models.SelfAttention` says.

    Raises:
        ValueError: a size below 1 or not a multiple of the one named above, or a rate outside [0, 1).
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        check_positive(image_size=image_size, patch_size=patch_size, num_classes=num_classes)
        check_positive(in_channels=in_channels, dim=dim, depth=depth)
        check_dropout(dropout)
        if image_size % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got image_size={image_size} and patch_size={patch_size}"
            )
        self.image_size = image_size
        self.patch_embedding = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, norm_eps=1e-6, qk_norm=qk_norm)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_dim = dim
        self.head = nn.Linear(dim, num_classes)
        self.apply(init_weights)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def features(self, x: Tensor) -> Tensor:
        """Maps images ``[N, in_channels, image_size, image_size]`` to the class token after the last norm, ``[N, D]``.

        Raises:
            ValueError: images of another size.
        """
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size} x {self.image_size}, got shape {tuple(x.shape)}")
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)  # [N, P, D]
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)  # [N, 1 + P, D]
        tokens = self.dropout(tokens + self.positions)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]
