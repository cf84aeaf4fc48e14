import pytest
import torch

from leyden.data import CoupledSinusoids, SeriesDataModule, SeriesFile


class Line(SeriesDataModule):
    """Two variates: the number of the step, and its threefold; 40 steps, 24 to train on, 8 and 8 to evaluate."""

    def series(self):
        steps = torch.arange(40)
        return torch.stack([steps, 3 * steps], 1)


def test_windows_by_hand():
    data = Line(input_length=2, horizon=3, missing_rate=0.0)
    scaled = ((torch.arange(40.0) - 11.5) / (575 / 12) ** 0.5).unsqueeze(1).expand(40, 2)  # by the steps 0 to 23
    for part, start, stop in (("train", 0, 24), ("val", 24, 32), ("test", 32, 40)):
        windows = data.dataset(part)
        assert len(windows) == stop - start - 4
        batch = windows.__getitems__(list(range(len(windows))))
        for index, (past, future) in enumerate(zip(batch["input"], batch["target"], strict=True)):
            at = start + index
            torch.testing.assert_close(past, scaled[at : at + 2])
            torch.testing.assert_close(future, scaled[at + 2 : at + 5])
        assert batch["mask"].all()


def test_missing_points_are_zeros_in_the_past_alone():
    data, whole = (CoupledSinusoids(num_steps=4000, missing_rate=rate).dataset("train") for rate in (0.3, 0.0))
    rows = list(range(0, len(data) - 1, 24))
    batch, complete = data.__getitems__(rows), whole.__getitems__(rows)
    assert torch.equal(batch["target"], complete["target"])
    assert torch.equal(batch["input"], complete["input"] * batch["mask"])
    assert batch["mask"].float().mean().item() == pytest.approx(0.7, abs=0.01)
    shifted = data.__getitems__([row + 1 for row in rows])
    assert torch.equal(shifted["mask"][:, :-1], batch["mask"][:, 1:])  # a value is missing in all windows or in none


def test_missing_columns():
    masks = [
        CoupledSinusoids(missing="columns", missing_rate=0.5, data_seed=seed).dataset("test").tensors["mask"]
        for seed in (0, 1)
    ]
    for mask in masks:
        assert mask.all((0, 1)).sum() == 4
        assert torch.equal(mask.all((0, 1)), mask.any(0).any(0))
    assert not torch.equal(*masks)


def test_variates_are_mixtures_of_few_sources():
    series = CoupledSinusoids(noise=0.0, num_sources=2).series()
    # a sine and a cosine for each source span all variates
    values = torch.linalg.svdvals(series.double())
    assert values[3] > 1.0
    assert values[4] < 1e-2
    noisy = CoupledSinusoids(noise=0.3, num_sources=2).series()
    assert (noisy - series).std().item() == pytest.approx(0.3, rel=0.03)


def test_seeds():
    one, same, other = (
        CoupledSinusoids(seed=seed, data_seed=data_seed).dataset("train").tensors["input"]
        for seed, data_seed in ((0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "series.csv"
    rows = [f"2016-07-01 {i:02}:00:00,{i},{-2 * i},{'' if i == 3 else 1}" for i in range(20)]
    path.write_text("\n".join(["date,up,down,gap", *rows]) + "\n")
    return str(path)


def test_file(path):
    data = SeriesFile(path, columns=["down", "up"], input_length=2, horizon=1)
    assert torch.equal(data.series(), torch.stack([-2.0 * torch.arange(20), torch.arange(20.0)], 1).double())
    assert data.columns == ["down", "up"]
    with pytest.raises(ValueError, match="column 'gap' of .* must hold a number in every row"):
        SeriesFile(path)
    with pytest.raises(ValueError, match="column 'date' of .* must hold a number in every row"):
        SeriesFile(path, columns=["date"])
    with pytest.raises(ValueError, match="has no column 'side'; it has date, up, down, gap"):
        SeriesFile(path, columns=["up", "side"])
    with pytest.raises(ValueError, match="there is no file"):
        SeriesFile(path + "x")


def test_text_columns_are_left_out(tmp_path):
    path = tmp_path / "series.csv"
    path.write_text("date,a\nMonday,1\nTuesday,2\n")
    assert SeriesFile(str(path)).columns == ["a"]
    path.write_text("date\nMonday\n")
    with pytest.raises(ValueError, match="has no column of numbers"):
        SeriesFile(str(path))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"horizon": 0}, "input_length and horizon must be at least 1, got 24 and 0"),
        ({"missing_rate": 1.0}, r"missing_rate must lie in \[0, 1\), got 1.0"),
        ({"missing": "rows"}, "missing must be 'points' or 'columns', got 'rows'"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "must be positive and below 1 together, got 0.6 and 0.5"),
        ({"num_sources": 0}, "must be at least 1, got 8, 2000 and 0"),
        ({"noise": -0.1}, "noise must be at least 0, got -0.1"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        CoupledSinusoids(**arguments)


def test_too_short():
    with pytest.raises(ValueError, match="the val part has 20 steps, a window takes input_length \\+ horizon = 48"):
        CoupledSinusoids(num_steps=100).dataset("train")
