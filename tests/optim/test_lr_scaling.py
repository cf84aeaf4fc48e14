import pytest

from leyden.optim import scale_lr


def test_rates_by_hand():
    assert scale_lr(0.1, 1024, 64) == pytest.approx(1.6)
    assert scale_lr(0.1, 1024, 64, rule="sqrt") == pytest.approx(0.4)
    assert scale_lr(0.1, 16, 64, rule="linear") == pytest.approx(0.025)
    assert scale_lr(0.3, 64, 64, rule="sqrt") == 0.3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="rule must be 'linear' or 'sqrt', got 'log'"):
        scale_lr(0.1, 64, 32, rule="log")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        scale_lr(0.1, 0, 32)
