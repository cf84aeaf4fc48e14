"""What methods share whose step makes a second pass, at other weights, and returns a gradient of its own."""

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.tensor import DTensor

from leyden.core.batch import Terms
from leyden.core.method import Method

__all__ = ["check_own_terms", "check_two_passes"]


def check_two_passes(method: Method) -> None:
    """Checks that gradients can be taken outside of the backward pass.

    Raises:
        MisconfigurationException: the parameters are sharded, or float16 would need a scaled loss.
    """
    name = type(method).__name__
    if any(isinstance(p, DTensor) for p in method.parameters()):
        raise MisconfigurationException(f"{name} needs whole parameters, but these are sharded: train with DDP")
    if method.trainer.precision == "16-mixed":
        raise MisconfigurationException(
            f"{name} takes gradients by itself, which float16 without a scaled loss rounds to 0: use bf16-mixed"
        )


def check_own_terms(method: Method, own: Terms, terms: Terms) -> None:
    """Checks that callbacks left a method's own terms as they were, because its second pass does not ask them.

    Raises:
        MisconfigurationException: one was changed.
    """
    changed = [name for name, term in own.items() if terms.get(name) is not term]
    if changed:
        raise MisconfigurationException(
            f"a callback changes the loss term {changed[0]!r}, which the second pass of {type(method).__name__} would "
            "not know: take out the callback, or let it add a term"
        )
