"""Task arithmetic, DARE, DAREx-q and TIES against the authors' numbers, by hand, and as identities."""

import copy
import math

import pytest
import torch
from torch import nn

from leyden.weights import (
    add_task_vectors,
    average,
    dare,
    darex_q,
    search_rescale,
    task_vector,
    ties_merge,
)


def linear(weight, bias):
    return {"weight": torch.tensor(weight), "bias": torch.tensor(bias), "steps": torch.tensor(7)}


BASE = linear([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [0.5, -0.5])
MODELS = [
    linear([[1.5, 1.0, 3.25], [4.0, 5.75, 5.0]], [0.5, 0.0]),
    linear([[2.0, 2.5, 2.75], [3.5, 5.25, 6.125]], [1.5, -1.5]),
    linear([[0.5, 2.5, 3.5], [4.25, 5.0, 6.0625]], [0.25, -0.5]),
]
# printed by MergingMethod.ties_merging of yule-BUAA/MergeLM (commit 0dbd199) for an nn.Linear with these weights
TIES = {
    (0.5, 1.0): ([[1.75, 2.5, 3.5], [3.5, 5.75, 5.0]], [1.5, -1.5]),
    (0.3, 0.5): ([[1.375, 2.25, 3.1875], [3.75, 5.25, 5.5]], [1.0, -1.0]),
    (0.8, 1.0): ([[2.0, 1.0, 3.5], [4.0, 5.75, 5.0]], [1.5, -1.5]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("setting", "expected"), TIES.items())
def test_ties_of_the_authors(setting, expected, dtype):
    cast = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in s.items()} for s in (BASE, *MODELS)]
    result = ties_merge(cast[0], cast[1:], trim_rate=setting[0], scale=setting[1])
    assert (result["weight"].tolist(), result["bias"].tolist()) == expected
    assert result["weight"].dtype == dtype
    assert result["steps"].item() == 7


def test_task_arithmetic_of_the_authors():
    # printed by MergingMethod.task_arithmetic of the same
    result = add_task_vectors(BASE, [task_vector(model, BASE) for model in MODELS], scale=0.5)
    assert result["weight"].tolist() == [[1.5, 2.0, 3.25], [3.875, 5.5, 5.59375]]
    assert result["bias"].tolist() == [0.875, -0.75]


def test_ties_against_float64():
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(50, 7, generator=generator), "b": torch.randn(33, generator=generator)}
    models = [{k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in base.items()} for _ in range(4)]
    result = ties_merge(base, models, trim_rate=0.6, scale=0.7)

    flat = torch.stack([torch.cat([(m[k] - base[k]).flatten() for k in base]) for m in models]).double()
    kept = flat.abs() >= flat.abs().sort(dim=1).values[:, int(0.6 * flat.shape[1]) - 1 : int(0.6 * flat.shape[1])]
    flat = flat * kept
    sign = flat.sum(0).sign()
    agrees = (flat.sign() == sign) & (flat != 0)
    merged = (flat * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    expected = torch.cat([base[k].flatten() for k in base]).double() + 0.7 * merged
    torch.testing.assert_close(torch.cat([result[k].flatten() for k in base]).double(), expected, rtol=1e-6, atol=1e-6)


def test_ties_of_a_cancelled_sum_takes_the_sign_of_most():
    base = {"w": torch.zeros(4)}
    models = [{"w": torch.tensor([1.0, 2.0, 3.0, 5.0])}, {"w": torch.tensor([-1.0, 1.0, 1.0, 1.0])}]
    assert ties_merge(base, models, trim_rate=0.0)["w"].tolist() == [1.0, 1.5, 2.0, 3.0]
    models = [{"w": -model["w"]} for model in models]
    assert ties_merge(base, models, trim_rate=0.0)["w"].tolist() == [-1.0, -1.5, -2.0, -3.0]


def test_ties_of_one_model_untrimmed_is_the_model():
    result = ties_merge(BASE, MODELS[:1], trim_rate=0.0)
    assert torch.equal(result["weight"], MODELS[0]["weight"])
    everything = ties_merge(BASE, MODELS[:1], trim_rate=1.0)  # the largest change is at the border
    assert (everything["weight"] != BASE["weight"]).sum() == 2


def test_one_task_vector_gives_back_the_model():
    vector = task_vector(MODELS[0], BASE)
    assert list(vector) == ["weight", "bias"]
    assert torch.equal(add_task_vectors(BASE, [vector])["weight"], MODELS[0]["weight"])
    without = task_vector(MODELS[0], BASE, exclude=["bi*"])
    assert list(without) == ["weight"]
    assert torch.equal(add_task_vectors(BASE, [without])["bias"], BASE["bias"])


def test_differences_of_half_precision_are_float32():
    base = {"w": torch.tensor([1.0, 256.0], dtype=torch.bfloat16)}
    model = {"w": torch.tensor([1.0078125, 258.0], dtype=torch.bfloat16)}
    vector = task_vector(model, base)
    assert vector["w"].dtype == torch.float32
    assert vector["w"].tolist() == [0.0078125, 2.0]
    assert add_task_vectors(base, [vector])["w"].dtype == torch.bfloat16


# ---- DARE


def delta(size=20000):
    return {"a": torch.randn(size, generator=torch.Generator().manual_seed(1)), "b": torch.ones(3, 5)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_survivors_and_their_share():
    original = delta()
    dropped = dare(original, drop_rate=0.9, generator=seeded())
    kept = dropped["a"] != 0
    torch.testing.assert_close(dropped["a"][kept], original["a"][kept] / (1 - 0.9))
    # binomial: 20000 * 0.1 = 2000, standard deviation 42
    assert abs(int(kept.sum()) - 2000) < 5 * 42
    halved = dare(original, drop_rate=0.9, rescale=0.5, generator=seeded())
    assert torch.equal(halved["a"] != 0, kept)
    torch.testing.assert_close(halved["a"][kept], original["a"][kept] / 0.5)


def test_expectation_is_the_delta():
    total = sum(dare(delta(), drop_rate=0.5, generator=seeded(seed))["b"] for seed in range(400)) / 400
    assert (total - 1.0).abs().max() < 5 * 400**-0.5  # each has the standard deviation 1


def test_edges():
    assert torch.equal(dare(delta(), drop_rate=0.0)["a"], delta()["a"])
    assert dare(delta(), drop_rate=1.0)["a"].tolist() == [0.0] * 20000
    integers = dare({"n": torch.arange(5)}, drop_rate=1.0)
    assert integers["n"].tolist() == [0, 1, 2, 3, 4]


def test_same_generator_same_entries_in_any_order():
    one = dare(delta(), generator=seeded())
    two = dare(dict(reversed(delta().items())), generator=seeded())
    assert torch.equal(one["a"], two["a"])
    assert not torch.equal(one["a"], dare(delta(), generator=seeded(1))["a"])
    torch.manual_seed(3)
    three = dare(delta())
    torch.manual_seed(3)
    assert torch.equal(three["a"], dare(delta())["a"])


def test_divisors_by_name():
    result = dare(
        {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}, drop_rate=0.0, rescale={"a": 0.5, "b": 1.0}
    )
    assert [result[name][0].item() for name in "abc"] == [2.0, 1.0, pytest.approx(1 / 0.75)]


def test_mean_of_dropped_models_is_the_base_and_the_mean_of_dropped_deltas():
    vectors = [dare(task_vector(model, BASE), drop_rate=0.5, generator=seeded(n)) for n, model in enumerate(MODELS)]
    mean = average([add_task_vectors(BASE, [vector]) for vector in vectors])
    torch.testing.assert_close(mean["weight"], add_task_vectors(BASE, vectors, scale=1 / 3)["weight"])


def test_dare_keeps_what_magnitude_dropping_loses():
    # one output that sums 4000 small changes: the expectation stays, without rescaling it would shrink to a tenth
    change = {"w": torch.full((4000,), 1e-3)}
    kept = dare(change, drop_rate=0.9, generator=seeded())["w"].sum().item()
    assert kept == pytest.approx(4.0, abs=5 * 4.0 * (9 / 4000) ** 0.5)


# ---- DAREx-q

CONTRIBUTIONS = torch.tensor(
    [[-1.0] * 10, [-1.5] * 10, [-0.5] * 9 + [-6.0], [-0.25] * 10, [2.0, -14.0] + [0.25] * 8, [-3.0] * 10]
)
# printed by analytical_resolve_new of vengdeng/DAREx (commit 8f5ced8), which computes in float16, without early stop
AUTHORS = {
    (0.9, 0.45): [0.831, 0.495, 0.998, 0.998, 0.998, 0.486],
    (0.99, 0.45): [0.395, 0.293, 0.655, 0.998, 0.998, 0.322],
    (0.8, 1.0): [0.602, 0.615, 0.949, 0.998, 0.998, 0.733],
}


@pytest.mark.parametrize(("setting", "expected"), AUTHORS.items())
def test_darex_q_of_the_authors(setting, expected):
    q = darex_q(CONTRIBUTIONS, setting[0], eta=setting[1])
    assert q.dtype == torch.float64
    torch.testing.assert_close(q, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.0021)


def test_darex_q_is_the_minimum_of_the_bound():
    p, eta = 0.9, 0.45
    for row, q in zip(CONTRIBUTIONS.double(), darex_q(CONTRIBUTIONS, p), strict=True):
        values = {}
        for grid in range(100, 999):
            here = grid / 1000
            phi = (1 - 2 * p) / math.log((1 - p) / p)
            spread = eta**2 * phi * (row**2).sum().item() / (4 * here**2)
            values[grid] = abs(eta * (1 - (1 - p) / here) * row.sum().item() + spread + math.log(2 / 0.05))
        assert round(1000 * q.item()) == min(values, key=lambda grid: values[grid])


def test_darex_q_where_half_is_dropped():
    near, half = (darex_q(CONTRIBUTIONS, p) for p in (0.5001, 0.5))
    assert half.isfinite().all()
    torch.testing.assert_close(half, near, rtol=0, atol=0.0011)


def test_search_rescale():
    tried = []

    def loss(q):
        tried.append(q)
        return (q - 0.54) ** 2

    assert search_rescale(loss, 0.9375, steps=5) == 0.5
    assert tried == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert search_rescale(lambda q: math.nan if q < 0.2 else q, 0.9375, steps=5) == 0.25
    assert search_rescale(lambda q: q, 0.9, steps=1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dare({}, drop_rate=1.5), r"drop_rate must lie in \[0, 1\], got 1.5"),
        (lambda: dare({}, rescale=0.0), "rescale must be positive, got 0.0"),
        (lambda: dare({}, rescale={"a": -1.0}), "rescale must be positive"),
        (lambda: ties_merge(BASE, []), "at least one state dict"),
        (lambda: ties_merge(BASE, MODELS, trim_rate=-1), "trim_rate must lie in"),
        (lambda: ties_merge(BASE, [{"weight": BASE["weight"]}]), "state dict 1 has no 'bias'"),
        (lambda: task_vector(BASE | {"bias": torch.ones(3)}, BASE), "shapes of 'bias' differ"),
        (lambda: add_task_vectors(BASE, [{"x": torch.ones(1)}]), "the base has no 'x' of a task vector"),
        (lambda: darex_q(torch.ones(3), 0.9), r"shape \[out, in\], got \(3,\)"),
        (lambda: darex_q(torch.ones(3, 3), 1.0), "drop_rate must lie in"),
        (lambda: darex_q(torch.ones(3, 3), 0.9, prob=1.0), "prob lie in"),
        (lambda: search_rescale(lambda q: q, 0.5, upper=0.1), "upper must be at least 0.5"),
        (lambda: search_rescale(lambda q: math.nan, 0.5), "no finite loss"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inputs_are_not_altered_and_ties_stay():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    base = module.state_dict()
    before = copy.deepcopy(base)
    model = copy.deepcopy(module)
    with torch.no_grad():
        model[0].weight.add_(0.1 * torch.randn(3, 3, generator=seeded()))
    tuned = model.state_dict()
    assert tuned["0.weight"].data_ptr() == tuned["1.weight"].data_ptr()
    for result in (
        ties_merge(base, [tuned, tuned], trim_rate=0.5),
        add_task_vectors(base, [dare(task_vector(tuned, base), generator=seeded())]),
    ):
        assert torch.equal(result["0.weight"], result["1.weight"])
    assert all(torch.equal(base[name], before[name]) for name in base)
