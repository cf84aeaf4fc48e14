"""A network as a consistency function (Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023,
arXiv 2303.01469, appendix C; authors' code: openai/consistency_models)."""

import torch
from torch import Tensor, nn

__all__ = ["ConsistencyPrecond"]


class ConsistencyPrecond(nn.Module):
    """``f(x, sigma) = c_skip x + c_out network(c_in x, 250 ln sigma)``, which is x where sigma is the least.

    Scales are computed in float32 at least; only the network sees less.

    Args:
        network: maps samples ``[N, ...]`` and times ``[N]`` to the shape of the samples.
        sigma_data: standard deviation of the data.
        sigma_min: least size of noise.

    Raises:
        ValueError: one of the two is not positive.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float = 0.5, sigma_min: float = 0.002) -> None:
        super().__init__()
        for name, value in (("sigma_data", sigma_data), ("sigma_min", sigma_min)):
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns samples without noise.

        Args:
            x: noisy samples, ``[N, ...]``.
            sigma: sizes of the noise, ``[N]``.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = sigma.to(dtype).view(-1, *(1 for _ in x.shape[1:]))
        above = scale - self.sigma_min
        c_skip = self.sigma_data**2 / (above.square() + self.sigma_data**2)
        c_in = (scale.square() + self.sigma_data**2).rsqrt()
        c_out = above * self.sigma_data * c_in
        weight = next(self.network.parameters(), x)
        output = self.network((c_in * x).to(weight.dtype), 250.0 * (sigma.to(dtype) + 1e-44).log())
        return c_skip * x + c_out * output.to(dtype)
