import warnings

import pytest
import torch

from leyden.optim import convex_relu_admm, relu_from_convex, sample_arrangements, sampled_convex_relu

TIGHT = {"iterations": 100_000, "tol": 1e-9}


def problem():
    n = torch.arange(1, 13, dtype=torch.float64)
    X = torch.stack([torch.cos(1.3 * n), torch.sin(2.1 * n + 0.5), torch.ones_like(n)], 1)
    return X, torch.sin(3.0 * X[:, 0]) + 0.5 * X[:, 1].square()


def six_arrangements(X):
    p = torch.arange(1, 7, dtype=torch.float64)
    directions = torch.stack([torch.cos(5.0 * p), torch.sin(3.0 * p + 1.0), 0.5 * torch.cos(2.0 * p)], 1)
    return directions @ X.T >= 0.0


def convex_objective(X, y, arrangements, v, w, beta):
    prediction = ((v - w) @ X.T * arrangements).sum(0)
    return 0.5 * (prediction - y).square().sum() + beta * (v.norm(dim=1).sum() + w.norm(dim=1).sum())


def network_objective(X, y, U, alpha, beta):
    prediction = (X @ U.T).relu() @ alpha
    return 0.5 * (prediction - y).square().sum() + 0.5 * beta * (U.square().sum() + alpha.square().sum())


@pytest.mark.parametrize(
    ("beta", "objective", "v_norms", "w_norms", "first"),
    [  # cvxpy 1.9.3 with Clarabel, tolerances of 1e-10
        (0.1, 0.6314705748355, [0, 0, 0, 0.474768, 0, 0.403033], [0, 0, 0.281799, 0, 0.321876, 0], 0.66000796),
        (0.5, 1.0073308423637, [0, 0, 0, 0.135478, 0, 0.501507], [0, 0, 0.188325, 0, 0, 0], 0.54836908),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"rho": 0.5, "gamma": 1.6}])
def test_numbers_of_another_solver(beta, objective, v_norms, w_norms, first, settings):
    X, y = problem()
    arrangements = six_arrangements(X)
    v, w = convex_relu_admm(X, y, arrangements, beta=beta, **settings, **TIGHT)
    assert convex_objective(X, y, arrangements, v, w, beta).item() == pytest.approx(objective, abs=1e-8)
    assert v.norm(dim=1).tolist() == pytest.approx(v_norms, abs=2e-6)
    assert w.norm(dim=1).tolist() == pytest.approx(w_norms, abs=2e-6)
    U, alpha = relu_from_convex(v, w)
    assert network_objective(X, y, U, alpha, beta).item() == pytest.approx(objective, abs=1e-7)
    assert ((X[:1] @ U.T).relu() @ alpha).item() == pytest.approx(first, abs=1e-6)


def test_one_sample_by_hand():
    # |v - w - y|^2 / 2 + beta (|v| + |w|), v and w at least 0: the soft threshold of y
    on = torch.ones(1, 1, dtype=torch.bool)
    for y, beta, expected in ((2.0, 0.5, 1.5), (-2.0, 0.5, -1.5), (0.3, 0.5, 0.0), (2.0, 0.0, 2.0)):
        v, w = convex_relu_admm(torch.ones(1, 1), torch.tensor([y]), on, beta=beta, **TIGHT)
        assert (v - w).item() == pytest.approx(expected, abs=1e-8)
        assert beta == 0.0 or min(v.abs().item(), w.abs().item()) < 1e-8


def test_nothing_to_fit_and_too_large_beta_give_zeros():
    X, y = problem()
    arrangements = six_arrangements(X)
    for target, beta in ((torch.zeros_like(y), 0.1), (y, (arrangements * y @ X).norm(dim=1).max().item() + 0.01)):
        v, w = convex_relu_admm(X, target, arrangements, beta=beta, **TIGHT)
        assert not v.any()
        assert not w.any()
        U, alpha = relu_from_convex(v, w)
        assert U.shape == (0, 3)
        assert alpha.shape == (0,)


def test_more_arrangements_never_raise_the_optimum():
    X, y = problem()
    values = []
    for count in (1, 3, 6):
        arrangements = six_arrangements(X)[:count]
        v, w = convex_relu_admm(X, y, arrangements, beta=0.1, **TIGHT)
        values.append(convex_objective(X, y, arrangements, v, w, 0.1).item())
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.1 * values[-1]


def test_no_network_beats_the_optimum_over_all_arrangements():
    points = [[1.0, 0.1], [0.3, 0.9], [-0.8, 0.6], [-0.9, -0.5], [0.2, -1.0], [0.1, 0.2]]
    X = torch.cat([torch.tensor(points), torch.ones(6, 1)], 1).double()
    y = problem()[1][:6]
    every = sample_arrangements(X, 20_000, torch.Generator().manual_seed(0))
    assert len(every) == 2 * (1 + 5 + 10)  # T. Cover, 1965: of 6 points in general position, in 3 dimensions
    v, w = convex_relu_admm(X, y, every, beta=0.1, iterations=20_000, tol=1e-5)
    best = network_objective(X, y, *relu_from_convex(v, w), 0.1).item()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        U = (0.5 * torch.randn(20, 3, generator=generator, dtype=torch.float64)).requires_grad_()
        alpha = (0.1 * torch.randn(20, generator=generator, dtype=torch.float64)).requires_grad_()
        optimizer = torch.optim.Adam([U, alpha], lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            loss = network_objective(X, y, U, alpha, 0.1)
            loss.backward()
            optimizer.step()
        assert best - 1e-5 < loss.item() < 1.1 * best  # it is the same problem


def test_arrangements_are_those_of_directions_and_distinct():
    X, _ = problem()
    found = sample_arrangements(X, 500, torch.Generator().manual_seed(3))
    assert found.dtype == torch.bool
    assert len(set(map(tuple, found.tolist()))) == len(found) < 500
    first = torch.randn(500, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) @ X.T >= 0.0
    order = [next(i for i, row in enumerate(found) if torch.equal(row, pattern)) for pattern in first[:40]]
    assert list(dict.fromkeys(order)) == list(range(max(order) + 1))  # numbered as they come up first


def test_lasso():
    X, y = problem()
    directions = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = sampled_convex_relu(X, y, directions, beta=0.05, iterations=50_000)
    hidden = (X @ directions.T).relu()
    slope = hidden.T @ (hidden @ alpha - y)  # the optimum's conditions: -beta sign(alpha), or at most beta
    used = alpha != 0.0
    assert 0 < used.sum() < 12
    torch.testing.assert_close(slope[used], -0.05 * alpha[used].sign(), atol=1e-5, rtol=0.0)
    assert (slope[~used].abs() <= 0.05 + 1e-6).all()
    # by hand: neurons that see one sample each are soft thresholds
    one = sampled_convex_relu(torch.eye(2), torch.tensor([2.0, -0.3]), torch.eye(2), beta=0.5)
    assert one.tolist() == pytest.approx([1.5, 0.0])


def test_warns_where_it_did_not_converge():
    X, y = problem()
    with pytest.warns(UserWarning, match=r"stopped after 5 iterations with a residual of .*, above tol = 1e-06"):
        convex_relu_admm(X, y, six_arrangements(X), beta=0.1, iterations=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convex_relu_admm(X, y, six_arrangements(X), beta=0.1, tol=10.0, iterations=1)


def test_bad_arguments():
    X, y = problem()
    arrangements = six_arrangements(X)
    for match, call in (
        (r"X must be a matrix of inputs \[N, D\]", lambda: sample_arrangements(y, 3)),
        ("num must be at least 1, got 0", lambda: sample_arrangements(X, 0)),
        ("y must have the 12 rows of X", lambda: convex_relu_admm(X, y[:5], arrangements)),
        (r"arrangements must be bool \[P, 12\], got", lambda: convex_relu_admm(X, y, arrangements.T)),
        (r"arrangements must be bool \[P, 12\], got", lambda: convex_relu_admm(X, y, arrangements.double())),
        ("rho above 0", lambda: convex_relu_admm(X, y, arrangements, rho=0.0)),
        (r"gamma in \(0, 1.6\]", lambda: convex_relu_admm(X, y, arrangements, gamma=2.0)),
        ("two matrices of one shape", lambda: relu_from_convex(X, X[:3])),
        (r"directions \[M, 3\], got", lambda: sampled_convex_relu(X, y, X.T, beta=0.1)),
        ("beta must be above 0, got 0.0", lambda: sampled_convex_relu(X, y, X, beta=0.0)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
