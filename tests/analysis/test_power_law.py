import numpy as np
import pytest
from scipy.optimize import curve_fit

from leyden.analysis import PowerLaw, data_efficiency, fit_saturating_power_law

X = [0.15, 0.3, 0.6, 1.4]


def test_exact_data_are_recovered():
    y = [0.6 / x**0.45 + 3.2 for x in X]
    assert fit_saturating_power_law(X, y) == pytest.approx((0.6, 0.45, 3.2), rel=1e-5)
    assert fit_saturating_power_law([1e9 * x for x in X], y) == pytest.approx((0.6 * 1e9**0.45, 0.45, 3.2), rel=1e-4)
    assert fit_saturating_power_law(X, [value + 2.0 for value in y]) == pytest.approx((0.6, 0.45, 5.2), rel=1e-5)


def test_against_scipy():
    y = 0.6 / np.array(X) ** 0.8 + 3.2 + np.array([0.01, -0.02, 0.015, -0.005])
    expected, _ = curve_fit(lambda x, a, b, c: a / x**b + c, X, y, p0=(0.5, 0.7, 3.0), ftol=1e-14, xtol=1e-14)
    assert fit_saturating_power_law(X, y) == pytest.approx(tuple(expected), rel=1e-4)


def test_law():
    law = PowerLaw(scale=2.0, exponent=0.5, asymptote=3.0)
    assert law.predict(4.0) == 4.0
    assert law.inverse(4.0) == 4.0
    assert data_efficiency(3.5, law) == 16.0
    assert data_efficiency(3.5, law, used=2.0) == 8.0
    for below in (2.9, 3.0):
        with pytest.raises(ValueError, match="beyond its asymptote 3, got"):
            law.inverse(below)
    with pytest.raises(ValueError, match="used must be positive"):
        data_efficiency(3.5, law, used=0.0)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 3 different numbers, got 2"):
        fit_saturating_power_law([1.0, 2.0, 2.0], [3.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="as many numbers"):
        fit_saturating_power_law(X, [1.0])
    with pytest.raises(ValueError, match="x must be positive"):
        fit_saturating_power_law([0.0, 1.0, 2.0], [3.0, 2.0, 1.0])
    with pytest.warns(UserWarning, match="the exponent ends at a bound"):
        fit_saturating_power_law([1.0, 2.0, 4.0, 8.0], [4.0, 3.0, 2.0, 1.0])  # falls with log x: B tends to 0
