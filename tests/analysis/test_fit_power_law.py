"""Power laws that are known."""

import pytest

from leyden.analysis import fit_power_law


def test_an_exact_law():
    steps = [1, 10, 30, 500]
    assert fit_power_law(steps, [7.0 * step**-0.3 for step in steps]) == pytest.approx((7.0, 0.3))


def test_least_squares_of_logarithms_by_hand():
    # log losses 0, 2, 1 at log steps 0, 1, 2: the line 1/2 + x/2
    e = 2.718281828459045
    assert fit_power_law([1, e, e**2], [1, e**2, e]) == pytest.approx((e**0.5, -0.5))


def test_errors():
    with pytest.raises(ValueError, match="losses must be positive and finite"):
        fit_power_law([1, 2], [1.0, 0.0])
    with pytest.raises(ValueError, match="as many numbers"):
        fit_power_law([1, 2, 3], [1.0, 2.0])
    with pytest.raises(ValueError, match="two different numbers or more"):
        fit_power_law([2, 2], [1.0, 1.0])
