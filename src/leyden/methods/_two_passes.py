"""What methods share whose step makes a second pass, at other weights, and returns a gradient of its own."""

from collections.abc import Callable, Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core.batch import Terms
from leyden.core.distributed import is_sharded
from leyden.core.gradients import gradients_per_term
from leyden.core.method import Method
from leyden.nn.running_stats import frozen_running_stats
from leyden.optim.sam import perturbed_parameters, sam_perturbation

__all__ = ["check_own_terms", "check_two_passes", "sam_gradients"]


def check_two_passes(method: Method) -> None:
    """Checks that gradients can be taken outside of the backward pass.

    Raises:
        MisconfigurationException: the parameters are sharded, or float16 would need a scaled loss.
    """
    name = type(method).__name__
    if is_sharded(method.parameters()):
        raise MisconfigurationException(f"{name} needs whole parameters, but these are sharded: train with DDP")
    if getattr(method.trainer.precision_plugin, "scaler", None) is not None:
        raise MisconfigurationException(
            f"{name} needs gradients within the step, which float16 loses without scaling: set trainer.precision to "
            "bf16-mixed or 32-true"
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


def sam_gradients(
    method: Method,
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    rho: float,
    adaptive: bool = False,
) -> list[Tensor]:
    """Gradients at perturbed weights, averaged over processes; weights and batch norms are left as they were.

    Args:
        method: the method.
        loss: makes the loss anew.
        parameters: P parameters.
        gradients: of the loss, at the weights.
        rho: as in `leyden.optim.sam_perturbation`, like the next.
        adaptive: see there.
    """
    step = sam_perturbation(parameters, gradients, rho=rho, adaptive=adaptive)
    with perturbed_parameters(parameters, step), frozen_running_stats(method.network):
        return gradients_per_term({"sam": loss()}, parameters)["sam"]
