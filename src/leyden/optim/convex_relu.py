"""Two-layer ReLU networks by convex optimisation (Y. Bai, T. Gautam, S. Sojoudi, "Efficient Global Optimization of
Two-layer ReLU Networks: Quadratic-time Algorithms and Adversarial Training", 2022, arXiv 2201.01965: algorithm 1, ADMM
on the convex problem of M. Pilanci and T. Ergen, 2020, and the sampled convex program of section 5). Related code:
Bai-YT/Convex-NN-Training.

The network ``f(x) = sum_j relu(u_j . x) alpha_j`` with the loss ``||f - y||^2 / 2 + beta / 2 * sum_j (||u_j||^2 +
alpha_j^2)`` has the same optimum as a convex problem over the sign patterns ("arrangements") of the neurons.
"""

import warnings

import torch
from torch import Tensor

__all__ = ["convex_relu_admm", "relu_from_convex", "sample_arrangements", "sampled_convex_relu"]


def sample_arrangements(X: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
    """Signs ``X h >= 0`` of normal directions h, each pattern once.

    Args:
        X: inputs, ``[N, D]``; with a column of ones where neurons are to have a bias.
        num: number of directions drawn.
        generator: source of the directions; the global one if None.

    Returns:
        bool ``[P, N]``, P <= ``num``, in the order in which they were drawn first.

    Raises:
        ValueError: ``num`` is below 1, or X is no matrix.
    """
    _check_matrix(X)
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    directions = torch.randn(num, X.shape[1], generator=generator, dtype=torch.float64)
    patterns = directions @ X.detach().to("cpu", torch.float64).T >= 0.0  # [num, N]
    distinct, group = torch.unique(patterns, dim=0, return_inverse=True)
    first = torch.full((len(distinct),), num).scatter_reduce(0, group, torch.arange(num), "amin")
    return patterns[first.sort().values]


def convex_relu_admm(
    X: Tensor,
    y: Tensor,
    arrangements: Tensor,
    *,
    beta: float = 1e-3,
    rho: float = 0.1,
    gamma: float = 1.0,
    iterations: int = 2000,
    tol: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Solves the convex problem of given arrangements by ADMM, in float64 on the CPU.

    With ``D_i`` the i-th arrangement as a diagonal matrix it is ``min ||sum_i D_i X (v_i - w_i) - y||^2 / 2 + beta *
    sum_i (||v_i|| + ||w_i||)`` where ``(2 D_i - 1) X v_i >= 0`` and ``(2 D_i - 1) X w_i >= 0``. These constraints hold
    up to the last residual; a matrix with ``(2 P D)^2`` entries is factorised once.

    Args:
        X: inputs, ``[N, D]``.
        y: targets, ``[N]``.
        arrangements: bool ``[P, N]``, such as `sample_arrangements` gives.
        beta: weight of the norms.
        rho: penalty of ADMM: how fast it converges, not where to.
        gamma: step of the dual variables as a multiple of ``rho``, in (0, 1.6].
        iterations: at most so many; a warning tells if they did not suffice.
        tol: at which the sum of residuals (u and a, G u and s) and of the last changes of a and s stops it.

    Returns:
        v and w, float64 ``[P, D]``; rows that are not used are exactly 0.

    Raises:
        ValueError: shapes do not fit, or a number is out of range.
    """
    _check_matrix(X)
    if y.shape != X.shape[:1]:
        raise ValueError(f"y must have the {len(X)} rows of X, got shape {tuple(y.shape)}")
    if arrangements.ndim != 2 or arrangements.shape[1] != len(X) or arrangements.dtype != torch.bool:
        expected = f"bool [P, {len(X)}]"
        raise ValueError(
            f"arrangements must be {expected}, got {arrangements.dtype} of shape {tuple(arrangements.shape)}"
        )
    if not beta >= 0.0 or not rho > 0.0 or not 0.0 < gamma <= 1.6 or iterations < 1:
        raise ValueError(
            f"beta must be at least 0, rho above 0, gamma in (0, 1.6] and iterations at least 1, got {beta}, {rho}, "
            f"{gamma} and {iterations}"
        )
    X, y = (tensor.detach().to("cpu", torch.float64) for tensor in (X, y))
    active = arrangements.cpu().double()  # [P, N]
    (P, N), D = active.shape, X.shape[1]
    signs = (2.0 * active - 1.0).repeat(2, 1)  # [2P, N]; the blocks of G are diag(signs_i) X
    half = (active.T.unsqueeze(-1) * X.unsqueeze(1)).reshape(N, P * D)
    F = torch.cat([half, -half], 1)  # [N, 2PD]
    system = F.T @ F / rho + torch.block_diag(*[torch.eye(D, dtype=X.dtype) + X.T @ X] * (2 * P))  # signs square to 1
    factor = torch.linalg.cholesky(system)
    pull = (F.T @ y).view(2 * P, D) / rho

    u = a = lam = torch.zeros(2 * P, D, dtype=X.dtype)
    s = nu = torch.zeros(2 * P, N, dtype=X.dtype)
    residual = torch.inf
    for _ in range(iterations):
        right = pull + a - lam + (signs * (s - nu)) @ X
        u = torch.cholesky_solve(right.view(-1, 1), factor).view(2 * P, D)
        norm = (u + lam).norm(dim=1, keepdim=True)
        a_before, s_before = a, s
        a = (u + lam) * (1.0 - beta / rho / norm.clamp(min=torch.finfo(X.dtype).tiny)).clamp(min=0.0)
        outside = signs * (u @ X.T)  # G u
        s = (outside + nu).relu()
        lam = lam + gamma * (u - a)
        nu = nu + gamma * (outside - s)
        gaps = (u - a, outside - s, a - a_before, s - s_before)  # the first two alone are small too early
        residual = sum(gap.norm().item() for gap in gaps)
        if residual < tol:
            break
    else:
        warnings.warn(
            f"convex_relu_admm stopped after {iterations} iterations with a residual of {residual:.1e}, above tol = "
            f"{tol:g}: the constraints hold up to that; allow more iterations or change rho",
            stacklevel=2,
        )
    return a[:P].clone(), a[P:].clone()


def relu_from_convex(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Network of a solution of the convex problem: ``f(x) = relu(x U^T) alpha``, one neuron for each row that is not 0.

    Args:
        v: ``[P, D]``.
        w: ``[P, D]``.

    Returns:
        U ``[M, D]`` and alpha ``[M]``, positive for rows of v, negative for those of w.

    Raises:
        ValueError: v and w have different shapes.
    """
    if v.shape != w.shape or v.ndim != 2:
        raise ValueError(f"v and w must be two matrices of one shape, got {tuple(v.shape)} and {tuple(w.shape)}")
    rows = torch.cat([v, w])
    roots = rows.norm(dim=1).sqrt()
    signed = torch.cat([roots[: len(v)], -roots[len(v) :]])
    used = roots > 0.0
    return rows[used] / roots[used].unsqueeze(1), signed[used]


def sampled_convex_relu(X: Tensor, y: Tensor, directions: Tensor, *, beta: float, iterations: int = 5000) -> Tensor:
    """Output weights of a network with fixed, sampled hidden neurons: a lasso.

    Minimises ``||relu(X directions^T) alpha - y||^2 / 2 + beta * sum_j |alpha_j|`` by scikit-learn's coordinate
    descent, which warns if it has not converged.

    Args:
        X: inputs, ``[N, D]``.
        y: targets, ``[N]``.
        directions: weights of the hidden neurons, ``[M, D]``.
        beta: weight of the absolute values, above 0.
        iterations: at most so many passes over the neurons.

    Returns:
        alpha, float64 ``[M]``.

    Raises:
        ValueError: shapes do not fit, or ``beta`` is not above 0.
    """
    from sklearn.linear_model import Lasso  # slow to import

    _check_matrix(X)
    if y.shape != X.shape[:1] or directions.ndim != 2 or directions.shape[1] != X.shape[1]:
        raise ValueError(
            f"X {tuple(X.shape)} takes y ({len(X)},) and directions [M, {X.shape[1]}], got {tuple(y.shape)} and "
            f"{tuple(directions.shape)}"
        )
    if not beta > 0.0:
        raise ValueError(f"beta must be above 0, got {beta}")
    X, y, directions = (tensor.detach().to("cpu", torch.float64) for tensor in (X, y, directions))
    hidden = (X @ directions.T).relu()  # [N, M]
    lasso = Lasso(beta / len(X), fit_intercept=False, max_iter=iterations, tol=1e-10)
    return torch.from_numpy(lasso.fit(hidden.numpy(), y.numpy()).coef_.copy())


def _check_matrix(X: Tensor) -> None:
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must be a matrix of inputs [N, D], got shape {tuple(X.shape)}")
