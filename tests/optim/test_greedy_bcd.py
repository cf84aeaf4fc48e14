import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn import Parameter

from leyden.optim import GreedyBCD, greedy_block


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


BLOCKS = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [  # by hand, for g = (3, -1, 2, -2.5)
        ({"rule": "gs", "block_size": 1}, [0]),
        ({"rule": "gs", "block_size": 3}, [0, 2, 3]),
        ({"rule": "gsd", "block_size": 1, "lipschitz": vector(9, 0.1, 1, 1)}, [1]),  # 1, 10, 4, 6.25
        ({"rule": "gsd", "block_size": 2, "lipschitz": vector(9, 0.1, 1, 1)}, [1, 3]),
        ({"rule": "gs", "blocks": BLOCKS}, [2, 3]),  # 10 and 10.25, though 4 and 4.5 as sums of magnitudes say it too
        ({"rule": "gsl", "blocks": BLOCKS, "block_lipschitz": vector(1, 2)}, [0, 1]),  # 10 and 5.125
        ({"rule": "gsd", "blocks": BLOCKS, "lipschitz": vector(9, 1, 1, 1)}, [2, 3]),  # 2 and 10.25
        ({"rule": "gsq", "blocks": BLOCKS, "hessian": torch.diag(vector(9, 1, 1, 1))}, [2, 3]),
        ({"rule": "gsq", "blocks": BLOCKS, "hessian": torch.diag(vector(1, 1, 9, 9))}, [0, 1]),
        ({"rule": "gs", "blocks": torch.tensor([[3, 1], [2, 0]])}, [0, 2]),
    ],
)
def test_rules_by_hand(arguments, expected):
    assert greedy_block(vector(3, -1, 2, -2.5), **arguments).tolist() == expected


def test_gsq_of_a_full_hessian():
    # H_b = [[2, 1], [1, 2]], g_b = (3, -1): H^-1 g = (7, -5) / 3, g . H^-1 g = 26 / 3; the other block has 10.25
    hessian = torch.block_diag(vector(2, 1, 1, 2).view(2, 2), torch.eye(2, dtype=torch.float64))
    assert greedy_block(vector(3, -1, 2, -2.5), rule="gsq", blocks=BLOCKS, hessian=hessian).tolist() == [2, 3]
    smaller = hessian.clone()
    smaller[2:, 2:] *= 10.25 / (26 / 3) + 1e-9
    assert greedy_block(vector(3, -1, 2, -2.5), rule="gsq", blocks=BLOCKS, hessian=smaller).tolist() == [0, 1]


def test_first_of_equal_ones():
    assert greedy_block(vector(1, -2, 2, 2), block_size=2).tolist() == [1, 2]
    assert greedy_block(torch.ones(4), blocks=BLOCKS).tolist() == [0, 1]


def test_equal_bounds_make_the_rules_one():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        grad = torch.randn(12, generator=generator, dtype=torch.float64)
        equal = torch.full((12,), 0.3, dtype=torch.float64)
        both = [greedy_block(grad, rule=rule, block_size=4, lipschitz=equal) for rule in ("gs", "gsd")]
        assert torch.equal(*both)
        bounds = torch.rand(12, generator=generator, dtype=torch.float64) + 0.1
        single = torch.arange(12).view(12, 1)
        chosen = [
            greedy_block(grad, rule="gsd", block_size=1, lipschitz=bounds),
            greedy_block(grad, rule="gsd", blocks=single, lipschitz=bounds),
            greedy_block(grad, rule="gsl", blocks=single, block_lipschitz=bounds),
            greedy_block(grad, rule="gsq", blocks=single, hessian=torch.diag(bounds)),
        ]
        assert all(torch.equal(chosen[0], other) for other in chosen[1:])


def least_squares():
    X, y = load_diabetes(return_X_y=True)
    X = torch.from_numpy(X / X.std(0))
    y = torch.from_numpy((y - y.mean()) / y.std())
    return X, y, lambda w: 0.5 * (X @ w - y).square().sum()


def gaps(choose, steps=40):
    """Distance to the optimum of diabetes after exact steps along blocks of two."""
    X, y, loss = least_squares()
    H = X.T @ X
    best = loss(torch.linalg.solve(H, X.T @ y))
    w = torch.zeros(10, dtype=torch.float64)
    found = [(loss(w) - best).item()]
    for _ in range(steps):
        grad = X.T @ (X @ w - y)
        block = choose(grad, H)
        w[block] -= torch.linalg.solve(H[block][:, block], grad[block])
        found.append((loss(w) - best).item())
    return found


PAIRS = torch.arange(10).view(5, 2)


def test_greedy_rules_beat_chance_on_least_squares():
    generator = torch.Generator().manual_seed(0)
    rules = {
        "gsq": lambda g, H: greedy_block(g, rule="gsq", blocks=PAIRS, hessian=H),
        "gs": lambda g, H: greedy_block(g, rule="gs", blocks=PAIRS),
        "random": lambda g, H: PAIRS[torch.randint(5, (), generator=generator)],
    }
    found = {name: gaps(rule) for name, rule in rules.items()}
    for values in found.values():
        assert all(np.diff(values) <= 1e-10)
    assert max(found["gsq"][-1], found["gs"][-1]) < 0.5 * found["random"][-1]


def test_gsq_makes_the_most_of_each_step():
    seen = []

    def choose(grad, H):
        progress = [0.5 * grad[b] @ torch.linalg.solve(H[b][:, b], grad[b]) for b in PAIRS]
        seen.append(max(progress).item())
        return greedy_block(grad, rule="gsq", blocks=PAIRS, hessian=H)

    assert (-np.diff(gaps(choose, steps=15))).tolist() == pytest.approx(seen, rel=1e-6)


def test_all_coordinates_with_the_exact_hessian_are_newtons_step():
    assert gaps(lambda g, H: torch.arange(10), steps=1)[1] == pytest.approx(0.0, abs=1e-9)


# ---- the optimizer


def logistic():
    X, y = load_breast_cancer(return_X_y=True)
    X = torch.from_numpy((X - X.mean(0)) / X.std(0))
    sign = torch.from_numpy(2.0 * y - 1.0)
    return X, lambda w, b: torch.nn.functional.softplus(-sign * (X @ w + b)).mean()


@pytest.mark.parametrize("rule", ["gs", "gsd"])
def test_single_coordinates_of_a_logistic_regression(rule):
    X, loss = logistic()
    w, b = Parameter(torch.zeros(30, dtype=torch.float64)), Parameter(torch.zeros(1, dtype=torch.float64))
    bounds = [X.square().mean(0) / 4, torch.full((1,), 0.25)]  # of the second derivatives
    optimizer = GreedyBCD([w, b], rule=rule, lipschitz=bounds)
    for _ in range(60):
        optimizer.zero_grad()
        before = loss(w, b)
        before.backward()
        old = w.detach().clone(), b.detach().clone()
        grads, L = torch.cat([w.grad, b.grad]), torch.cat(bounds)
        optimizer.step()
        moved = torch.cat([w.detach() - old[0], b.detach() - old[1]])
        [chosen] = moved.nonzero().flatten().tolist()
        score = grads.abs() if rule == "gs" else grads.abs() / L.sqrt()
        assert score[chosen] == score.max()
        assert moved[chosen].item() == pytest.approx((-grads[chosen] / L[chosen]).item())
        assert loss(w, b) <= before - grads[chosen] ** 2 / (2 * L[chosen]) + 1e-12
    assert loss(w, b) < 0.12


def test_groups_rates_and_missing_gradients():
    first, second, third = (Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
    optimizer = GreedyBCD([{"params": [first, second]}, {"params": [third], "lr": 0.5}], block_size=2, lipschitz=2.0)
    first.grad, third.grad = vector(1, 4), vector(-6, 2)
    optimizer.step()
    assert first.tolist() == [0.0, -2.0]
    assert third.tolist() == [1.5, 0.0]
    assert second.tolist() == [0.0, 0.0]
    assert not optimizer.state


def shared_step():
    mesh = init_device_mesh("cpu", (2,))
    params = [Parameter(distribute_tensor(torch.zeros(5, 2), mesh, [Shard(0)]), True) for _ in range(2)]
    for seed, p in enumerate(params):
        grad = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
        p.grad = distribute_tensor(grad, mesh, [Shard(0)])
    GreedyBCD(params, block_size=6, lipschitz=2.0).step()
    return [p.detach().full_tensor() for p in params]


def test_shared_tensors_choose_among_all(run_processes):
    params = [Parameter(torch.zeros(5, 2)) for _ in range(2)]
    for seed, p in enumerate(params):
        p.grad = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
    GreedyBCD(params, block_size=6, lipschitz=2.0).step()
    assert sum((p != 0).sum() for p in params) == 6
    for shared in run_processes(shared_step, 2):
        torch.testing.assert_close(shared, [p.detach() for p in params])


def test_bad_arguments():
    g, p = vector(1, 2, 3), [Parameter(torch.zeros(3))]
    for match, call in (
        (r"grad must be a vector", lambda: greedy_block(g.view(1, 3), block_size=1)),
        ("rule must be", lambda: greedy_block(g, rule="best", block_size=1)),
        ("give block_size or blocks", lambda: greedy_block(g)),
        (r"block_size must lie in 1..3, got 4", lambda: greedy_block(g, block_size=4)),
        ("rule 'gsq' compares fixed blocks", lambda: greedy_block(g, rule="gsq", block_size=1)),
        (r"rule 'gsd' needs lipschitz of shape \(3,\), got None", lambda: greedy_block(g, rule="gsd", block_size=1)),
        ("rule 'gsl' needs block_lipschitz", lambda: greedy_block(g, rule="gsl", blocks=torch.tensor([[0, 1]]))),
        ("blocks must be indices below 3", lambda: greedy_block(g, blocks=torch.tensor([[0, 3]]))),
        ("rule must be 'gs' or 'gsd', got 'gsq'", lambda: GreedyBCD(p, rule="gsq", lipschitz=1.0)),
        ("block_size must be at least 1, got 0", lambda: GreedyBCD(p, block_size=0, lipschitz=1.0)),
        ("lipschitz must be above 0, got 0.0", lambda: GreedyBCD(p, lipschitz=0.0)),
        ("tensors of the parameters' shapes", lambda: GreedyBCD(p, lipschitz=[torch.ones(2)])),
    ):
        with pytest.raises(ValueError, match=match):
            call()
