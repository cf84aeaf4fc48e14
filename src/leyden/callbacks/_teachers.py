"""Frozen networks that a callback asks in each training step."""

import hashlib

import torch
from torch import Tensor

from leyden.core import FeatureTaps, Method, Network, Outputs

__all__ = ["Teachers"]


class Teachers:
    """Networks without gradients, in eval mode, outside of checkpoints.

    Args:
        networks: the teachers.

    Attributes:
        fingerprints: of their weights, from `attach` on.
    """

    def __init__(self, networks: Network | list[Network]) -> None:
        self.networks = [networks] if isinstance(networks, Network) else list(networks)
        if not self.networks:
            raise ValueError("teacher must be at least one network, got an empty list")
        self.fingerprints: list[str] = []

    def attach(self, method: Method, name: str, taps: list[str] | None = None) -> None:
        """Hands the networks over to the method.

        Args:
            method: the method.
            name: name in ``method.frozen``, numbered.
            taps: names of modules in each of them whose outputs are wanted.

        Raises:
            ValueError: there is no module of the name of a tap.
        """
        for number, network in enumerate(self.networks):
            method.attach_frozen(f"{name}_teacher_{number}", network)
        self.fingerprints = [_fingerprint(network) for network in self.networks]
        self._taps = [FeatureTaps(network, taps or []) for network in self.networks]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Outputs]:
        """Runs them."""
        results = []
        for network, taps in zip(self.networks, self._taps, strict=True):
            with taps.collect() as tapped:
                features = network.features(x)
                results.append(Outputs(logits=network.head(features), features=features, taps=tapped))
        return results


def _fingerprint(network: Network) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
