import numpy as np
import pytest
from scipy import stats

from leyden.analysis import paired_difference

BASELINE = [0.90, 0.92, 0.88, 0.91, 0.89]
METHOD = [0.92, 0.93, 0.91, 0.91, 0.93]  # differences 0.02, 0.01, 0.03, 0.00, 0.04


def test_by_hand():
    found = paired_difference(BASELINE, METHOD)
    assert found.n == 5
    assert found.mean == pytest.approx(0.02)
    assert found.std == pytest.approx((0.001 / 4) ** 0.5)  # squares about the mean: 0 + 1 + 1 + 4 + 4, times 1e-4
    margin = 2.7764451 * (0.001 / 4 / 5) ** 0.5  # the table's t for 4 degrees of freedom
    assert found.interval == pytest.approx((0.02 - margin, 0.02 + margin), abs=1e-8)


def test_agrees_with_scipy():
    rng = np.random.default_rng(3)
    baseline, method = rng.normal(size=(2, 12))
    found = paired_difference(list(baseline), list(method), confidence=0.9)
    reference = stats.ttest_rel(method, baseline).confidence_interval(0.9)
    assert found.interval == pytest.approx((reference.low, reference.high))
    bootstrap = stats.bootstrap(
        (method - baseline,), np.mean, method="percentile", confidence_level=0.9, n_resamples=10_000, rng=rng
    ).confidence_interval
    assert found.bootstrap == pytest.approx((bootstrap.low, bootstrap.high), abs=0.05 * found.std)


def test_bootstrap_of_two_pairs():
    # resamples are (0, 0), (0, 1), (1, 0), (1, 1): a quarter of the means is 0, a quarter is 1
    assert paired_difference([0.0, 0.0], [0.0, 1.0]).bootstrap == (0.0, 1.0)


def test_bootstrap_is_seeded():
    assert paired_difference(BASELINE, METHOD) == paired_difference(BASELINE, METHOD)


def test_equal_runs_differ_by_nothing():
    found = paired_difference(BASELINE, BASELINE)
    assert (found.mean, found.std, found.interval, found.bootstrap) == (0.0, 0.0, (0.0, 0.0), (0.0, 0.0))


def test_one_pair_has_no_interval():
    found = paired_difference([1.0], [3.0])
    assert (found.n, found.mean, found.interval, found.bootstrap) == (1, 2.0, None, None)


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match="they have 2, 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not 0"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        paired_difference([1.0], [1.0], confidence=95)
