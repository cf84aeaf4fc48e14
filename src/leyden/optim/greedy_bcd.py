"""Greedy block coordinate descent (J. Nutini, I. Laradji, M. Schmidt, "Let's Make Block Coordinate Descent Converge
Faster: Faster Greedy Rules, Message-Passing, Active-Set Complexity, and Superlinear Convergence", 2017, arXiv
1712.08859). Original code: IssamLaradji/BlockCoordinateDescent, which scores fixed blocks by sums of absolute values;
the rules here are the paper's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import check_at_least_zero, is_sharded, with_gradient

__all__ = ["GreedyBCD", "greedy_block"]


def greedy_block(
    grad: Tensor,
    *,
    rule: str = "gs",
    block_size: int | None = None,
    blocks: Tensor | None = None,
    lipschitz: Tensor | None = None,
    block_lipschitz: Tensor | None = None,
    hessian: Tensor | None = None,
) -> Tensor:
    """Chooses the coordinates whose step promises the most.

    Of any ``block_size`` coordinates, ``"gs"`` takes the largest ``|g_i|``, and ``"gsd"`` the largest
    ``g_i ** 2 / L_i``. Of fixed blocks b, ``"gs"`` takes the largest ``||g_b||``, ``"gsl"`` ``||g_b|| ** 2 / L_b``,
    ``"gsd"`` the sum of ``g_i ** 2 / L_i``, and ``"gsq"`` ``g_b . H_b^-1 g_b``. Of equal ones the first is taken.

    Args:
        grad: gradient, ``[P]``.
        rule: ``"gs"``, ``"gsd"``, ``"gsl"`` or ``"gsq"``; the last two are for fixed blocks.
        block_size: K, the size of a variable block.
        blocks: the fixed blocks, int64 ``[B, K]``; give this or ``block_size``.
        lipschitz: L_i, ``[P]``, for ``"gsd"``.
        block_lipschitz: L_b, ``[B]``, for ``"gsl"``.
        hessian: H, or an upper bound, ``[P, P]``, for ``"gsq"``.

    Returns:
        Indices of the block, sorted, int64 ``[K]``.

    Raises:
        ValueError: an argument is missing, out of range, or of another shape.
    """
    if grad.ndim != 1 or not len(grad):
        raise ValueError(f"grad must be a vector, got shape {tuple(grad.shape)}")
    if rule not in ("gs", "gsd", "gsl", "gsq"):
        raise ValueError(f"rule must be 'gs', 'gsd', 'gsl' or 'gsq', got {rule!r}")
    if (block_size is None) == (blocks is None):
        raise ValueError("give block_size or blocks, one of the two")
    P = len(grad)
    scores = grad.square()
    if rule == "gsd":
        scores = scores / _fitting("lipschitz", lipschitz, (P,), rule)
    if blocks is None:
        assert block_size is not None
        if rule in ("gsl", "gsq"):
            raise ValueError(f"rule {rule!r} compares fixed blocks: give blocks, not block_size")
        if not 1 <= block_size <= P:
            raise ValueError(f"block_size must lie in 1..{P}, got {block_size}")
        return scores.argsort(descending=True, stable=True)[:block_size].sort().values
    if blocks.ndim != 2 or not blocks.numel() or blocks.min() < 0 or blocks.max() >= P:
        raise ValueError(f"blocks must be indices below {P} in the shape [B, K], got {blocks}")
    if rule == "gsq":
        of_blocks = _fitting("hessian", hessian, (P, P), rule)[blocks.unsqueeze(2), blocks.unsqueeze(1)]  # [B, K, K]
        totals = (grad[blocks] * torch.linalg.solve(of_blocks, grad[blocks])).sum(1)
    else:
        totals = scores[blocks].sum(1)  # [B]
        if rule == "gsl":
            totals = totals / _fitting("block_lipschitz", block_lipschitz, (len(blocks),), rule)
    return blocks[totals.argsort(descending=True, stable=True)[0]].sort().values


class GreedyBCD(Optimizer):
    """Steps along the few coordinates, among those of all parameters, that promise the most.

    ``x_i <- x_i - lr * g_i / L_i`` for these. There is no state. A step of rate 1 never raises a loss whose curvature
    along the block is bounded: by ``L_i`` for single coordinates; for more, by row sums of the Hessian's absolute
    values, or by ``block_size * L_i``.

    Args:
        params: parameters or groups of them; the groups may differ in ``lr`` only.
        lr: share of the step that is made.
        rule: ``"gsd"``, largest ``g_i ** 2 / L_i``, or ``"gs"``, largest ``|g_i|``.
        block_size: coordinates of a step.
        lipschitz: L_i: a number, or one tensor per parameter, above 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        rule: str = "gsd",
        block_size: int = 1,
        lipschitz: float | Sequence[Tensor],
    ) -> None:
        check_at_least_zero(lr=lr)
        if rule not in ("gs", "gsd"):
            raise ValueError(f"rule must be 'gs' or 'gsd', got {rule!r}")
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        super().__init__(params, {"lr": lr})
        self.rule = rule
        self.block_size = block_size
        shapes = [p.shape for group in self.param_groups for p in group["params"]]
        bounds = [torch.as_tensor(b) for b in ([lipschitz] if isinstance(lipschitz, int | float) else lipschitz)]
        if any(not (bound > 0.0).all() for bound in bounds):
            raise ValueError(f"lipschitz must be above 0, got {lipschitz}")
        if not isinstance(lipschitz, int | float) and [bound.shape for bound in bounds] != shapes:
            raise ValueError(
                f"lipschitz must be a number, or tensors of the parameters' shapes {[tuple(s) for s in shapes]}, got "
                f"{[tuple(bound.shape) for bound in bounds]}"
            )
        self.lipschitz = bounds if len(bounds) == len(shapes) else bounds * len(shapes)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure, if there is one, returned.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bounds = iter(self.lipschitz)
        found: list[tuple[Tensor, Tensor, Tensor, float]] = []  # parameter, whole gradient, its bounds, rate
        for group in self.param_groups:
            usable = {id(p) for p in with_gradient(self, group)}
            for p in group["params"]:
                bound = next(bounds)
                if id(p) in usable:
                    grad = p.grad.full_tensor() if is_sharded(p.grad) else p.grad
                    found.append((p, grad, bound.to(grad).expand_as(grad), group["lr"]))
        if not found:
            return loss
        flat = torch.cat([grad.flatten() for _, grad, _, _ in found])
        L = torch.cat([bound.flatten() for _, _, bound, _ in found])
        block = greedy_block(flat, rule=self.rule, block_size=min(self.block_size, len(flat)), lipschitz=L)
        moves = torch.zeros_like(flat)
        moves[block] = -flat[block] / L[block]
        for (p, grad, _, lr), move in zip(found, moves.split([g.numel() for _, g, _, _ in found]), strict=True):
            move = move.view_as(grad)
            if is_sharded(p):
                from torch.distributed.tensor import distribute_tensor

                move = distribute_tensor(move, p.device_mesh, p.placements)  # type: ignore[attr-defined]
            p.add_(move, alpha=lr)
        return loss


def _fitting(name: str, value: Tensor | None, shape: tuple[int, ...], rule: str) -> Tensor:
    if value is None or value.shape != shape:
        got = "None" if value is None else f"shape {tuple(value.shape)}"
        raise ValueError(f"rule {rule!r} needs {name} of shape {shape}, got {got}")
    return value
