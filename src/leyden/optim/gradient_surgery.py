"""One gradient from those of several tasks.

`pcgrad`: T. Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, arXiv 2001.06782, algorithm 1.
`cagrad`: B. Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021, arXiv 2110.14048.
`imtl_g`: L. Liu et al., "Towards Impartial Multi-task Learning", 2021, section 3.1.
`flat_task_gradient`: H. Phan et al., "Improving Multi-task Learning via Seeking Task-based Flat Regions", 2022, arXiv
2211.13723 (later "Beyond Losses Reweighting"), algorithm 1; authors' code, of all four: VietHoang1512/FS-MTL.

All are weighted sums of the gradients, whose weights depend on their inner products alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["cagrad", "flat_task_gradient", "imtl_g", "pcgrad"]


@torch.no_grad()
def pcgrad(grads: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sum of the gradients, without what points against another one.

    Each gradient meets the others in random order; where its inner product with one is negative, it is projected on the
    plane that stands on that one.

    Args:
        grads: of T tasks, ``[T, P]``.
        generator: of the orders, on the CPU; not used for one or two tasks, which have but one order. The default one
            if None.

    Returns:
        ``[P]``.

    Raises:
        ValueError: ``grads`` is no matrix, or has no row.
    """
    products = _products(grads)
    num_tasks = len(products)
    if num_tasks > 2:
        orders = torch.stack([torch.randperm(num_tasks, generator=generator) for _ in range(num_tasks)])
    else:
        orders = torch.arange(num_tasks).expand(num_tasks, num_tasks)
    weights = torch.eye(num_tasks, dtype=products.dtype, device=products.device)  # row i: gradient i after surgery
    own = torch.arange(num_tasks, device=products.device)
    for others in orders.to(products.device).T:  # one other task for each
        inner = (weights * products[others]).sum(1)
        surplus = torch.where((inner < 0.0) & (others != own), inner / products[others, others], 0.0)
        weights[own, others] -= surplus
    return weights.sum(0).to(grads.dtype) @ grads


@torch.no_grad()
def cagrad(grads: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Near the mean of the gradients, the direction along which the worst task improves most.

    The weights are found by SciPy in float64, for which a GPU has to wait.

    Args:
        grads: of T tasks, ``[T, P]``.
        alpha: radius around the mean, as a share of its norm; 0 gives the mean.

    Returns:
        ``[P]``, over ``1 + alpha^2``, as the authors scale it.

    Raises:
        ValueError: ``grads`` is no matrix, or has no row; or ``alpha`` is outside of [0, 1).
    """
    from scipy.optimize import minimize  # slow to import

    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}")
    products = _products(grads).cpu()
    num_tasks = len(products)
    size = products.mean()  # squared norm of the mean gradient: the problem below is solved in units of it
    if num_tasks == 1 or not size > 0.0:
        return grads.mean(0)
    unit, start = (products / size).numpy(), torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64).numpy()
    solution = minimize(
        lambda x: x @ unit @ start + alpha * (x @ unit @ x + 1e-8) ** 0.5,
        start,
        jac=lambda x: unit @ start + alpha * (unit @ x) / (x @ unit @ x + 1e-8) ** 0.5,
        bounds=[(0.0, 1.0)] * num_tasks,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1.0, "jac": lambda x: x * 0.0 + 1.0},
        options={"ftol": 1e-12},
    ).x
    step = alpha * solution / ((solution @ unit @ solution) ** 0.5 + 1e-8)
    weights = torch.as_tensor((start + step) / (1.0 + alpha**2))
    return weights.to(grads) @ grads


@torch.no_grad()
def imtl_g(grads: Tensor) -> Tensor:
    """The weighted sum, by weights that sum to 1, whose projections on all gradients are equal.

    Args:
        grads: of T tasks, ``[T, P]``.

    Returns:
        ``[P]``; the first gradient where all are parallel.

    Raises:
        ValueError: ``grads`` is no matrix, or has no row.
    """
    products = _products(grads)
    lengths = products.diagonal().sqrt().clamp(min=torch.finfo(products.dtype).tiny)
    projections = products / lengths  # of gradient i on the direction of gradient j
    differences = projections[:, :1] - projections[:, 1:]  # on direction 1 less that on another, [T, T - 1]
    others = differences[0] @ torch.linalg.pinv(differences[:1] - differences[1:])
    weights = torch.cat([1.0 - others.sum().unsqueeze(0), others])
    return weights.to(grads.dtype) @ grads


def flat_task_gradient(
    loss_grads: Tensor, sam_grads: Tensor, *, aggregate: Callable[[Tensor], Tensor] = pcgrad
) -> Tensor:
    """Gradient towards a minimum of all tasks that is flat for each.

    A sharpness-aware gradient is that of the loss and a part towards flatness; each kind is aggregated by itself.

    Args:
        loss_grads: gradients of T tasks at the weights, ``[T, P]``.
        sam_grads: the same at each task's perturbed weights, ``[T, P]``.
        aggregate: makes one gradient ``[P]`` of ``[T, P]``.

    Returns:
        ``aggregate(loss_grads) + aggregate(sam_grads - loss_grads)``, ``[P]``.
    """
    return aggregate(loss_grads) + aggregate(sam_grads - loss_grads)


def _products(grads: Tensor) -> Tensor:
    """Inner products, float64 ``[T, T]``."""
    if grads.ndim != 2 or not len(grads):
        raise ValueError(f"grads must be one row per task, [T, P] with T of 1 or more, got {tuple(grads.shape)}")
    grads = grads.to(torch.promote_types(grads.dtype, torch.float32))
    return (grads @ grads.T).double()
