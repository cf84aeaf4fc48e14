"""The gradient of a method's own loss on every sample by itself."""

from collections.abc import Collection

from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from leyden.callbacks._method_loss import MethodLoss
from leyden.core import Batch, Method

__all__ = ["per_sample_gradients"]


def per_sample_gradients(method: Method, batch: Batch, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Returns, for every parameter that is trained (or these alone), the gradients of the N samples, ``[N, ...]``."""
    module = MethodLoss(method)
    named = {name: p.detach() for name, p in method.named_parameters() if p.requires_grad}
    if names is not None:
        named = {name: named[name] for name in names}
    if not len(batch["index"]):
        return {name: p.new_zeros(0, *p.shape) for name, p in named.items()}

    def loss(parameters: dict[str, Tensor], sample: Batch) -> Tensor:
        one = {key: value.unsqueeze(0) for key, value in sample.items()}
        return functional_call(module, {f"method.{name}": p for name, p in parameters.items()}, (one,))

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be batched once more
        return vmap(grad(loss), in_dims=(None, 0), randomness="different")(named, batch)
