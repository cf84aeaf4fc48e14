import io

import numpy as np
import pytest
import torch
from torch.nn import functional

from leyden.optim import MAID, implicit_hypergradient

DRAWS = np.random.default_rng(0)
A1, A2, A3 = (DRAWS.normal(size=(30, 3)) for _ in range(3))
B1, B2 = (DRAWS.normal(size=30) for _ in range(2))
HESSIAN = A2.T @ A2
CURVATURES = np.linalg.eigvalsh(HESSIAN)[[0, -1]].tolist()


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def lower(x, theta):
    a2, a3, b2 = tensors(A2, A3, B2)
    return 0.5 * (a2 @ x + a3 @ theta - b2).square().sum()


def upper(x, theta):
    a1, b1 = tensors(A1, B1)
    return 0.5 * (a1 @ x - b1).square().sum()


def minimiser(theta):
    return np.linalg.solve(HESSIAN, A2.T @ (B2 - A3 @ theta))


def exact_value(theta):
    return 0.5 * np.square(A1 @ minimiser(theta) - B1).sum()


def exact_hypergradient(theta):
    return -A3.T @ A2 @ np.linalg.solve(HESSIAN, A1.T @ (A1 @ minimiser(theta) - B1))


def optimum():
    response = -A1 @ np.linalg.solve(HESSIAN, A2.T @ A3)
    theta, *_ = np.linalg.lstsq(response, B1 - A1 @ minimiser(np.zeros(3)), rcond=None)
    return theta


def maid(**changed):
    settings = {
        "lipschitz": np.linalg.norm(A1, 2) ** 2,
        "curvature": lambda theta: CURVATURES,
        "step_size": 0.1,
    }
    start = torch.zeros(3, dtype=torch.float64)
    return MAID(changed.pop("lower", lower), changed.pop("upper", upper), start, start, **settings | changed)


def test_hypergradient_of_a_quadratic():
    theta = np.array([0.5, -1.0, 2.0])
    z = implicit_hypergradient(lower, upper, *tensors(minimiser(theta), theta), tol=1e-12)
    np.testing.assert_allclose(z.numpy(), exact_hypergradient(theta), rtol=1e-9)


def test_hypergradient_with_a_direct_part():
    theta = np.array([0.5, -1.0, 2.0])
    x = minimiser(theta)

    def both(x, theta):
        return upper(x, theta) + theta.pow(3).sum()

    z = implicit_hypergradient(lower, both, *tensors(x, theta), tol=1e-12)
    np.testing.assert_allclose(z.numpy(), exact_hypergradient(theta) + 3.0 * theta**2, rtol=1e-9)
    alone = implicit_hypergradient(lower, lambda x, theta: theta.pow(3).sum(), *tensors(x, theta))
    np.testing.assert_allclose(alone.numpy(), 3.0 * theta**2)


def test_hypergradient_needs_a_convex_lower_level():
    x, theta = torch.ones(3).double(), torch.ones(3).double()
    with pytest.raises(ValueError, match="not strongly convex.*add a small quadratic"):
        implicit_hypergradient(lambda x, theta: (x * theta).sum() - x.square().sum(), upper, x, theta)


@pytest.mark.parametrize(
    "changed", [{}, {"epsilon": 1e3, "delta": 1e3}, {"step_size": 1e3}], ids=["usual", "rough", "far"]
)
def test_finds_the_optimum_and_always_goes_down(changed):
    solver, before, num_accepted = maid(**changed), exact_value(np.zeros(3)), 0
    for _ in range(80):
        theta = solver.theta.numpy().copy()
        found = solver.step()
        true = exact_hypergradient(theta)
        if found["accepted"]:
            assert found["error_bound"] < found["hypergradient_norm"]
            assert abs(found["hypergradient_norm"] - np.linalg.norm(true)) <= found["error_bound"]
            value = exact_value(solver.theta.numpy())
            assert value < before + 1e-12
            before, num_accepted = value, num_accepted + 1
    assert num_accepted > 20
    np.testing.assert_allclose(solver.theta.numpy(), optimum(), atol=5e-3)
    np.testing.assert_allclose(found["upper"], exact_value(optimum()), rtol=1e-5)


def test_error_bound_where_both_derivatives_change():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=generator).double(), torch.randint(3, (40,), generator=generator)
    curvature = 0.5 * torch.linalg.matrix_norm(x, ord=2).item() ** 2 / 40

    def penalised(w, theta):
        return functional.cross_entropy(x[:20] @ w, y[:20]) + 0.5 * (theta.exp()[:, None] * w.square()).sum()

    def validation(w, theta):
        return functional.cross_entropy(x[20:] @ w, y[20:])

    for epsilon in (1.0, 0.1, 1e-3):
        solver = MAID(
            penalised,
            validation,
            torch.zeros(4, 3).double(),
            torch.full((4,), -2.0).double(),
            lipschitz=2.0 * curvature,  # of half of the samples
            curvature=lambda theta: (theta.exp().min().item(), theta.exp().max().item() + 2.0 * curvature),
            epsilon=epsilon,
            delta=epsilon,
        )
        theta = solver.theta
        z, bound = solver._inexact_gradient()
        w = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        newton = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-13, line_search_fn="strong_wolfe")

        def closure(w=w, newton=newton, theta=theta):
            newton.zero_grad()
            loss = penalised(w, theta)
            loss.backward()
            return loss

        newton.step(closure)
        true = implicit_hypergradient(penalised, validation, w, theta, tol=1e-13)
        assert (z - true).norm() <= bound
        assert bound <= z.norm()
        assert solver.lipschitz_mixed > 0.0
        assert solver.lipschitz_inverse > 0.0


def test_goes_on_from_a_state():
    whole, first, second = maid(), maid(), maid()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        found = second.step()
    assert torch.equal(second.theta, whole.theta)
    assert torch.equal(second.x, whole.x)
    assert found["lower_iterations"] == whole.lower_iterations


def test_stays_where_it_is_stationary():
    solver = maid(upper=lambda x, theta: (0.0 * theta).sum())
    found = solver.step()
    assert found["accepted"] == 0.0
    assert not solver.theta.any()


def test_bad_arguments_are_refused():
    for name, value in {"lipschitz": 0.0, "epsilon": -1.0, "step_size": 0.0}.items():
        with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
            maid(**{name: value})
    for name, value in {"eta": 1.0, "backtrack": 0.0, "shrink": 1.5}.items():
        with pytest.raises(ValueError, match=f"{name} must lie between 0 and 1, got {value}"):
            maid(**{name: value})
    with pytest.raises(ValueError, match="grow must be at least 1, got 0.5"):
        maid(grow=0.5)
    with pytest.raises(RuntimeError, match="not solved to epsilon=0.1 within max_iterations=2"):
        maid(max_iterations=2).step()
