"""MAID (M. S. Salehi, S. Mukherjee, L. Roberts, M. J. Ehrhardt, "An adaptively inexact first-order method for bilevel
optimization with application to hyperparameter learning", 2023, arXiv 2308.10098; authors' code:
MohammadSadeghSalehi/MAID).

Sufficient decrease (with ``eta^2``; the paper has another constant, unverified), the three rounds of 10, 11 and 12
trials and the growth of the step by 10/9 are those of the authors' code. Other than there, the error bound has the
Lipschitz constant of the upper gradient, as its derivation asks for; Lipschitz constants are estimated within
``epsilon`` of x; and after a round that fails the next begins with the first step size that seemed to do, or goes on
from the last, which a first one that is much too large needs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leyden.core.random import normal, sample_keys
from leyden.optim._implicit import Objective, conjugate_gradient, hypergradient, mixed_norm, mixed_product

__all__ = ["MAID", "implicit_hypergradient"]

_STEP_GROWTH = 10 / 9
_TRIALS = (10, 11, 12)  # of each round
_SMALLEST = 1e-10  # of both accuracies: at a stationary point, none would do


def implicit_hypergradient(
    lower: Objective, upper: Objective, x: Tensor, theta: Tensor, *, tol: float = 1e-8, max_iterations: int = 100
) -> Tensor:
    """Gradient of ``upper(x(theta), theta)`` in theta, where x(theta) minimises ``lower(x, theta)``.

    By the implicit function theorem, ``upper_theta - lower_theta_x q`` with ``lower_x_x q = upper_x``, which conjugate
    gradients solve; float64 is advised.

    Args:
        lower: gives a scalar of x and theta; strongly convex in x.
        upper: gives a scalar of x and theta.
        x: a minimiser of ``lower`` in x, any shape.
        theta: any shape.
        tol: norm of the residual at which conjugate gradients stop.
        max_iterations: at most so many of them.

    Returns:
        As ``theta``.

    Raises:
        ValueError: ``lower`` is seen not to be strongly convex.
    """
    return hypergradient(lower, upper, x, theta, tol=tol, max_iterations=max_iterations)[0]


class MAID:
    """Minimises ``upper(x(theta), theta)`` over theta, where x(theta) minimises ``lower(x, theta)``, as well as needed.

    Both levels are deterministic. A step finds x to an accuracy ``epsilon`` (by accelerated gradients) and the
    hypergradient to a residual ``delta``, makes both smaller until the hypergradient surely leads down, and searches
    for a step size at which the upper value surely falls. Then both accuracies and the step size grow a little.

    Args:
        lower: gives a scalar of x and theta; smooth and strongly convex in x.
        upper: gives a scalar of x and theta; smooth and convex in x.
        x0: where the search for x begins; float64 is advised.
        theta0: first theta.
        lipschitz: Lipschitz constant of the gradient of ``upper`` in x.
        curvature: gives the smallest (positive) and the largest curvature of ``lower`` in x at a theta, or bounds.
        epsilon: first bound of the distance of x from the minimiser.
        delta: first bound of the residual of the linear system.
        step_size: first step size.
        eta: slack of both tests.
        backtrack: factor of the step size between two trials.
        shrink: factor of both accuracies where they do not do.
        grow: factor of both accuracies after an accepted step.
        max_iterations: of the lower level and of conjugate gradients, each time.
        seed: of the directions in which Lipschitz constants are estimated.

    Attributes:
        x: the last x, detached.
        theta: the present theta, detached.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        lower: Objective,
        upper: Objective,
        x0: Tensor,
        theta0: Tensor,
        *,
        lipschitz: float,
        curvature: Callable[[Tensor], tuple[float, float]],
        epsilon: float = 0.1,
        delta: float = 0.1,
        step_size: float = 0.1,
        eta: float = 1e-4,
        backtrack: float = 0.9,
        shrink: float = 0.5,
        grow: float = 1.05,
        max_iterations: int = 20_000,
        seed: int = 0,
    ) -> None:
        positive = {"lipschitz": lipschitz, "epsilon": epsilon, "delta": delta, "step_size": step_size}
        for name, value in positive.items():
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, value in {"eta": eta, "backtrack": backtrack, "shrink": shrink}.items():
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        if not grow >= 1.0:
            raise ValueError(f"grow must be at least 1, got {grow}")
        self.lower = lower
        self.upper = upper
        self.x = x0.detach().clone()
        self.theta = theta0.detach().clone()
        self.lipschitz = lipschitz
        self.curvature = curvature
        self.epsilon = epsilon
        self.delta = delta
        self.step_size = step_size
        self.eta = eta
        self.backtrack = backtrack
        self.shrink = shrink
        self.grow = grow
        self.max_iterations = max_iterations
        self.seed = seed
        self.lipschitz_mixed = 0.0  # of lower_theta_x in x; the largest estimate so far
        self.lipschitz_inverse = 0.0  # of the inverse of lower_x_x
        self.num_bounds = 0  # how often these were estimated
        self.lower_iterations = 0
        self.cg_iterations = 0

    def step(self) -> dict[str, float]:
        """Makes an outer step.

        Returns:
            ``accepted`` (1, or 0 where theta stays: it is stationary, or no trial was accepted), ``upper`` (the upper
            value), ``hypergradient_norm``, ``error_bound`` (of the hypergradient), ``epsilon``, ``delta`` and
            ``step_size`` for the next step, and ``lower_iterations`` and ``cg_iterations`` since the beginning.

        Raises:
            ValueError: ``lower`` is seen not to be strongly convex.
            RuntimeError: the lower level was not solved within ``max_iterations``.
        """
        accepted = False
        for num_trials in _TRIALS:
            z, bound = self._inexact_gradient()
            if bound > (1.0 - self.eta) * z.norm():
                break  # as good as stationary
            accepted = self._search(z, num_trials)
            if accepted:
                self.epsilon, self.delta = self.grow * self.epsilon, self.grow * self.delta
                break
            self._tighten()
        return {
            "accepted": float(accepted),
            "upper": self._upper(self.x, self.theta)[0],
            "hypergradient_norm": z.norm().item(),
            "error_bound": bound,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "step_size": self.step_size,
            "lower_iterations": self.lower_iterations,
            "cg_iterations": self.cg_iterations,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        for name in _STATE:
            setattr(self, name, state[name])

    def _tighten(self) -> None:
        self.epsilon = max(self.shrink * self.epsilon, _SMALLEST)
        self.delta = max(self.shrink * self.delta, _SMALLEST)

    def _inexact_gradient(self) -> tuple[Tensor, float]:
        """Solves for x, and returns a hypergradient and a bound of its error, small enough if that can be."""
        while True:
            self.x = self._solve(self.theta, self.x)
            z, q, upper_x = self._hypergradient(self.x)
            bound = self._error_bound(q, upper_x)
            if bound <= (1.0 - self.eta) * z.norm() or self.epsilon <= _SMALLEST:
                return z, bound
            self._tighten()

    def _search(self, z: Tensor, num_trials: int) -> bool:
        """Moves x and theta if one of the trials brings the upper value down for sure."""
        value, slope = self._upper(self.x, self.theta)
        x, step_size, promising = self.x, self.step_size, None
        for _ in range(num_trials):
            theta = self.theta - step_size * z
            x = self._solve(theta, x)
            new_value, new_slope = self._upper(x, theta)
            doubt = (slope + new_slope) * self.epsilon + 0.5 * self.lipschitz * self.epsilon**2
            missing = new_value - value + step_size * self.eta**2 * z.square().sum().item()
            if missing + doubt <= 0.0:
                self.x, self.theta, self.step_size = x, theta, _STEP_GROWTH * step_size
                return True
            if missing <= 0.0 and promising is None:
                promising = step_size  # it takes better accuracies, no smaller step
            step_size *= self.backtrack
        self.step_size = promising or step_size
        return False

    def _solve(self, theta: Tensor, x: Tensor) -> Tensor:
        """Accelerated gradient descent to a point within ``epsilon`` of the minimiser."""
        smallest, largest = self.curvature(theta)
        momentum = (largest**0.5 - smallest**0.5) / (largest**0.5 + smallest**0.5)
        y = x
        for _ in range(self.max_iterations):
            y = y.detach().requires_grad_(True)
            [gradient] = torch.autograd.grad(self.lower(y, theta), y)
            self.lower_iterations += 1
            with torch.no_grad():
                moved = y - gradient / largest  # no farther from the minimiser than y, which is near if the slope is
                if gradient.norm() <= self.epsilon * smallest:
                    return moved
                y, x = moved + momentum * (moved - x), moved
        raise RuntimeError(
            f"the lower level was not solved to epsilon={self.epsilon:.3g} within max_iterations="
            f"{self.max_iterations}: its curvature is between {smallest:.3g} and {largest:.3g}"
        )

    def _hypergradient(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, q, upper_x, iterations = hypergradient(
            self.lower, self.upper, x, self.theta, tol=self.delta, max_iterations=self.max_iterations
        )
        self.cg_iterations += iterations
        return z, q, upper_x

    def _error_bound(self, q: Tensor, upper_x: Tensor) -> float:
        """Bound of the hypergradient's error, to the second order in epsilon."""
        keys = sample_keys(self.seed, self.num_bounds, torch.arange(2))
        draws = normal(keys, self.x.numel()).to(self.x).view(2, *self.x.shape)
        self.num_bounds += 1
        norm = mixed_norm(self.lower, self.x, self.theta, draws[0])
        shift = self.epsilon * draws[1] / draws[1].norm()
        change = mixed_product(self.lower, self.x + shift, self.theta, q) - mixed_product(
            self.lower, self.x, self.theta, q
        )
        shifted_q, iterations = conjugate_gradient(
            self.lower, self.x + shift, self.theta, upper_x, tol=self.delta, max_iterations=self.max_iterations
        )
        self.cg_iterations += iterations
        slope = upper_x.norm().item()
        if slope > 0.0 and q.norm() > 0.0:
            self.lipschitz_mixed = max(self.lipschitz_mixed, (change.norm() / (q.norm() * self.epsilon)).item())
            change_of_q = (shifted_q - q).norm().item()
            self.lipschitz_inverse = max(self.lipschitz_inverse, change_of_q / (slope * self.epsilon))
        smallest, _ = self.curvature(self.theta)
        first_order = (
            self.lipschitz * norm / smallest
            + self.lipschitz_inverse * slope * norm
            + self.lipschitz_mixed * slope / smallest
        )
        second_order = self.lipschitz_mixed * self.lipschitz / smallest
        return first_order * self.epsilon + norm / smallest * self.delta + second_order * self.epsilon**2

    def _upper(self, x: Tensor, theta: Tensor) -> tuple[float, float]:
        """Upper value, and the norm of its gradient in x."""
        x = x.detach().requires_grad_(True)
        value = self.upper(x, theta)
        if not value.requires_grad:
            return value.item(), 0.0
        [gradient] = torch.autograd.grad(value, x)
        return value.item(), gradient.norm().item()


_STATE = (
    "x",
    "theta",
    "epsilon",
    "delta",
    "step_size",
    "lipschitz_mixed",
    "lipschitz_inverse",
    "num_bounds",
    "lower_iterations",
    "cg_iterations",
)
