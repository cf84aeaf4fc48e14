import pytest
import torch

from leyden.metrics import DistanceCorrelation


def test_value_over_batches():
    """``distance_correlation_sqr`` of the dcor package, 0.7, for all eight samples."""
    i = torch.arange(8, dtype=torch.float64)
    x, y = torch.stack([torch.sin(i), torch.cos(2 * i)], 1), (i * i % 5) / 2
    metric = DistanceCorrelation(2)
    for rows in (slice(0, 5), slice(5, 8)):
        metric.update(y[rows], x[rows, :1], x[rows, 1])
    assert metric.compute().item() == pytest.approx(0.2678296129623256)
    metric.reset()
    metric.update(torch.tensor([0.0, 1.0, 1.0]), torch.zeros(3), torch.tensor([4, 4, 4]))
    assert metric.compute() == 0.0


def test_categories():
    metric = DistanceCorrelation()
    metric.update(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([7, 3, 3]))
    assert metric.compute().item() == pytest.approx(1.0)


def on_two():
    from leyden.core import rank

    metric = DistanceCorrelation()
    x, y = torch.tensor([0.3, 1.0, -2.0, 0.5]), torch.tensor([1, 0, 1, 1])
    rows = slice(0, 3) if rank() == 0 else slice(3, 4)  # shares of other sizes
    metric.update(x[rows], y[rows])
    return metric.compute().item()


def test_two_processes(run_processes):
    metric = DistanceCorrelation()
    metric.update(torch.tensor([0.3, 1.0, -2.0, 0.5]), torch.tensor([1, 0, 1, 1]))
    assert run_processes(on_two, 2) == [pytest.approx(metric.compute().item())] * 2


def test_number_of_attributes():
    with pytest.raises(ValueError, match="argument"):
        DistanceCorrelation(2).update(torch.zeros(3), torch.zeros(3))
