import pytest

from leyden.metrics import default_mode


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("test/accuracy", "max"),
        ("test/loss", "min"),
        ("val/bits_per_byte", "min"),
        ("loss/accuracy", "max"),
        ("val/frechet_distance", "min"),
    ],
)
def test_by_name(metric, mode):
    assert default_mode(metric) == mode
