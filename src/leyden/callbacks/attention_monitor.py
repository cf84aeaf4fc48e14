"""Attention logits and entropy during training: the two that move before a transformer diverges.

M. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv 2309.14322,
section 3.1.1; S. Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", 2023, arXiv
2303.06296, figure 1.
"""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.method import Method
from leyden.core.network import Outputs
from leyden.metrics.attention import AttentionEntropy, MaxAttentionLogit
from leyden.models.transformer import SelfAttention

__all__ = ["AttentionMonitor"]


class AttentionMonitor(MethodCallback):
    """Logs ``train/max_attention_logit`` and ``train/min_attention_entropy`` in the steps that the logger writes.

    The first is the largest logit of the batch over all layers, the second the entropy (in nats, as a mean over the
    queries of the batch) of the head that has the least. In those steps queries and keys are computed once more; the
    others pay nothing. It watches the layers of class `leyden.models.SelfAttention`, as `leyden.models.GPT` and
    `leyden.models.ViT` have.
    """

    def __init__(self) -> None:
        self._inputs: dict[str, Tensor] = {}  # of the attention layers in this step
        self._handles: list[RemovableHandle] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watches the layers that the network has by now.

        Raises:
            MisconfigurationException: there are none.
        """
        assert isinstance(pl_module, Method)
        self._layers = {name: m for name, m in pl_module.network.named_modules() if isinstance(m, SelfAttention)}
        if not self._layers:
            raise MisconfigurationException(
                f"AttentionMonitor watches leyden.models.SelfAttention, but {type(pl_module.network).__name__} has "
                "none: remove it, or train leyden.models.GPT or ViT"
            )
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(partial(self._keep, pl_module, name)))

    def _keep(self, method: Method, name: str, layer: SelfAttention, args: tuple[Any, ...], output: Tensor) -> None:
        if layer.training and layer is self._layers.get(name) and method._is_logged_step():
            self._inputs[name] = args[0].detach()

    @torch.no_grad()
    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Logs, if it is time; returns the terms as they are."""
        if not self._inputs:
            return terms
        largest = MaxAttentionLogit().to(method.device)
        entropies = []
        for name, x in self._inputs.items():
            logits = self._layers[name].logits(x)  # [N, H, T, T]
            largest.update(logits)
            entropy = AttentionEntropy(logits.shape[1]).to(method.device)
            entropy.update(logits.softmax(-1))
            entropies.append(entropy.compute())
        self._inputs = {}
        values = {"max_attention_logit": largest.compute(), "min_attention_entropy": torch.cat(entropies).min()}
        method.log_dict({f"train/{name}": value for name, value in values.items()})
        return terms

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._layers, self._inputs = [], {}, {}
