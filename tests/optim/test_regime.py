import pytest

from leyden.optim import adapt_regime


def test_epochs_by_hand():
    # the authors' ResNet regime and number of epochs, from batches of 128 to 2048
    assert adapt_regime([0, 81, 122, 164, 200], 2048, 128) == [0, 1296, 1952, 2624, 3200]
    assert adapt_regime((10,), 300, 128) == [30]  # ceil(2.34)
    assert adapt_regime([5, 7], 64, 64) == adapt_regime([5, 7], 32, 64) == [5, 7]
    assert adapt_regime([], 64, 32) == []


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="base_batch_size must be at least 1, got 0"):
        adapt_regime([1], 64, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        adapt_regime([1], -1, 1)
    with pytest.raises(ValueError, match=r"milestones must be epochs from 0 on, got \[3, -2\]"):
        adapt_regime([3, -2], 64, 32)
