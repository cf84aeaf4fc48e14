import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leyden.data import BreastCancer, CSVTable, Diabetes, Wine, split_indices


def rows_of(data, target):
    labels = torch.from_numpy(target) if data.num_classes else None
    return split_indices(len(target), data.fractions, seed=data.split_seed, labels=labels)


@pytest.mark.parametrize(
    ("source", "sizes", "num_features", "num_classes"),
    [(Wine, [124, 18, 36], 13, 3), (BreastCancer, [398, 57, 114], 30, 2), (Diabetes, [310, 44, 88], 10, None)],
)
def test_embedded_tables(source, sizes, num_features, num_classes):
    data = source()
    assert [len(data.dataset(name)) for name in ("train", "val", "test")] == sizes
    train = data.dataset("train").tensors
    assert (train["input"].shape[1], train["input"].dtype) == (num_features, torch.float32)
    assert (data.num_features, data.num_classes) == (num_features, num_classes)
    if num_classes:
        assert train["target"].dtype == torch.int64
        assert train["target"].unique().tolist() == list(range(num_classes))
    else:
        assert (train["target"].shape, train["target"].dtype) == ((sizes[0], 1), torch.float32)


def test_wine_is_standardised_as_by_sklearn_on_the_training_rows():
    data = Wine(split_seed=4)
    wine = load_wine()
    rows = rows_of(data, wine.target)
    scaler = StandardScaler().fit(wine.data[rows["train"]])
    for name in ("train", "val", "test"):
        part = data.dataset(name).tensors
        np.testing.assert_allclose(part["input"], scaler.transform(wine.data[rows[name]]), atol=1e-5)
        assert part["target"].tolist() == wine.target[rows[name]].tolist()
    np.testing.assert_allclose(data.feature_mean, scaler.mean_)
    np.testing.assert_allclose(data.feature_std, scaler.scale_)


def test_diabetes_targets_come_back():
    data = Diabetes()
    target = load_diabetes().target
    rows = rows_of(data, target)
    got = data.dataset("test").tensors["target"][:, 0] * data.target_std + data.target_mean
    np.testing.assert_allclose(got, target[rows["test"]], rtol=1e-5)
    assert data.dataset("train").tensors["target"].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.target_mean == pytest.approx(target[rows["train"]].mean())


def write(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def flowers(tmp_path):
    """40 rows: two numeric columns (one with missing values), one of text, a class as text."""
    rows = []
    for number in range(40):
        width = "" if number % 8 == 0 else f"{number * number / 7:.3f}"
        colour = ["red", "blue", "NA"][number % 3]
        rows.append(f"{number}, {width}, {colour}, {'iris' if number % 2 else 'rose'}")
    return write(tmp_path / "flowers.csv", "length,width,colour,kind", rows)


def test_csv_classification(flowers):
    data = CSVTable(flowers, "kind")
    assert data.feature_names == ["length", "width", "colour=missing", "colour=blue", "colour=red"]
    assert (data.num_features, data.num_classes, data.class_names) == (5, 2, ["iris", "rose"])

    numbers = np.arange(40.0)
    widths = np.where(numbers % 8 == 0, np.nan, np.round(numbers**2 / 7, 3))
    numeric = np.stack([numbers, widths], 1)
    target = (np.arange(40) + 1) % 2
    rows = rows_of(data, target)
    reference = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(numeric[rows["train"]])
    for name in ("train", "val", "test"):
        part = data.dataset(name).tensors
        np.testing.assert_allclose(part["input"][:, :2], reference.transform(numeric[rows[name]]), atol=1e-5)
        number = rows[name].numpy() % 3
        np.testing.assert_array_equal(part["input"][:, 2:], np.stack([number == 2, number == 1, number == 0], 1))
        assert part["target"].tolist() == target[rows[name]].tolist()


def test_csv_columns_can_be_chosen(flowers):
    data = CSVTable(flowers, "kind", columns=["length"])
    assert data.feature_names == ["length"]
    assert data.dataset("train")[0]["input"].shape == (1,)


@pytest.mark.parametrize(
    ("values", "task", "num_classes"),
    [
        (["3", "1", "2"], None, 3),
        (["3.5", "1", "2"], None, None),
        (["3", "1", "2"], "regression", None),
        (["0.5", "1", "0.5"], "classification", 2),
    ],
)
def test_the_task_follows_from_the_target(tmp_path, values, task, num_classes):
    path = write(tmp_path / "table.csv", "x;y", [f"{i};{values[i % 3]}" for i in range(30)])
    data = CSVTable(path, "y", task=task, delimiter=";")
    assert data.num_classes == num_classes
    assert data.dataset("train")[0]["target"].dtype == (torch.int64 if num_classes else torch.float32)


def test_more_than_20_whole_numbers_are_a_quantity(tmp_path):
    path = write(tmp_path / "table.csv", "x,y", [f"{i % 7},{i % 21}" for i in range(60)])
    assert CSVTable(path, "y").num_classes is None
    path = write(tmp_path / "table.csv", "x,y", [f"{i % 7},{i % 20}" for i in range(60)])
    data = CSVTable(path, "y")
    assert (data.num_classes, data.class_names[-1]) == (20, "19")


def test_a_constant_column_is_zero(tmp_path):
    path = write(tmp_path / "table.csv", "x,z,y", [f"{i},5,{i % 2}" for i in range(30)])
    assert CSVTable(path, "y").dataset("train").tensors["input"][:, 1].unique().tolist() == [0.0]


def test_quotes_byte_order_mark_and_empty_lines(tmp_path):
    path = tmp_path / "table.csv"
    lines = ['"a, b",y', *[f'"{i}",{i % 2}' for i in range(30)], ""]
    path.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode() + b"\r\n")
    assert CSVTable(str(path), "y").feature_names == ["a, b"]


@pytest.mark.parametrize(
    ("lines", "kwargs", "message"),
    [
        (["x,kind", "1,a"], {"target": "kinds"}, "no column 'kinds'; the nearest names are 'kind'"),
        (["x,kind", "1,a"], {"target": "kind", "columns": ["z"]}, "no column 'z'"),
        (["x,kind", "1,a"], {"target": "kind", "columns": ["kind"]}, "columns must be one or more names other than"),
        (["kind", "a"], {"target": "kind"}, "columns must be one or more"),
        (["x,kind", "1,a", "2"], {"target": "kind"}, "line 3 of .* has 1 fields, the header has 2"),
        (["x,x,kind", "1,2,a"], {"target": "kind"}, "two columns of one name"),
        (["x,kind"], {"target": "kind"}, "at least one row"),
        (["x,kind", "1,a", "2,NA"], {"target": "kind"}, "missing in 1 of 2 rows"),
        (["x,kind", "1,a", "2,b"], {"target": "kind", "task": "regression"}, "needs numbers"),
        (["x,kind", "inf,a", "2,b"], {"target": "kind"}, "column 'x' .* infinite"),
        (["x,kind", *[f"name{i},a" for i in range(1001)]], {"target": "kind"}, "column 'x' .* text of 1001 values"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, lines, kwargs, message):
    path = write(tmp_path / "table.csv", lines[0], lines[1:])
    with pytest.raises(ValueError, match=message) as caught:
        CSVTable(path, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nowhere\.csv"):
        CSVTable(str(tmp_path / "nowhere.csv"), "y")


def test_a_column_without_training_values_is_refused(tmp_path):
    path = write(tmp_path / "table.csv", "x,z,y", [f"{i},,{i % 2}" for i in range(30)])
    with pytest.raises(ValueError, match=r"numeric column 1 .* no value in any training row"):
        CSVTable(path, "y").setup("fit")


def test_an_empty_part_is_refused():
    with pytest.raises(ValueError, match="val_fraction must lie"):
        Wine(val_fraction=0.001).setup("fit")
