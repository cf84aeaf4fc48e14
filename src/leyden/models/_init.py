"""The initialisation that `ViT` and `GPT` share."""

from torch import nn

__all__ = ["init_weights"]


def init_weights(module: nn.Module) -> None:
    """Draws weights of a linear layer or embedding from N(0, 0.02^2) and zeroes the bias; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
