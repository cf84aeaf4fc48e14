import csv
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_diabetes, load_digits

from leyden.cli import main
from leyden.cli.prediction_writer import prediction_columns
from leyden.models import ConvNet

QUICK = ["-c", "logger/csv", "-c", "trainer/cpu", "-c", "trainer/quick", "--test_after_fit=false", "--name=run"]
RUN = "logs/default/run"
FILE = Path(RUN, "predict/predictions.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder above a run of digits."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *QUICK, "--model.network.width=4"]) == 0
    return folder


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def expected_probabilities():
    """Of all digits, in the order of scikit-learn."""
    state = torch.load(f"{RUN}/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    network = ConvNet(width=4).eval()
    network.load_state_dict({key[8:]: value for key, value in state.items() if key.startswith("network.")})
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    with torch.no_grad():
        return network(images).softmax(-1)


def test_csv(run, capsys):
    assert main(["predict", RUN, "--data.eval_batch_size=50"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"leyden: predictions: {FILE}"
    table = rows(FILE)
    assert list(table[0]) == ["index", "source", "target", "prediction", *(f"probability_{i}" for i in range(10))]
    assert [int(row["index"]) for row in table] == list(range(359))
    sources = [int(row["source"]) for row in table]
    assert [int(row["target"]) for row in table] == load_digits().target[sources].tolist()
    expected = expected_probabilities()[sources]
    written = torch.tensor([[float(row[f"probability_{i}"]) for i in range(10)] for row in table])
    torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-5)
    assert [int(row["prediction"]) for row in table] == written.argmax(-1).tolist()


def test_parquet_has_the_same_numbers_and_their_types(run, tmp_path):
    assert main(["predict", RUN]) == 0
    assert main(["predict", f"--ckpt_path={RUN}/checkpoints/best.ckpt", "--to=parquet", f"--output={tmp_path}/x"]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "x")
    assert [str(kind) for kind in table.schema.types] == ["int64"] * 4 + ["float"] * 10
    for column in table.column_names:
        kind = float if column.startswith("probability") else int
        assert [kind(row[column]) for row in rows(FILE)] == pytest.approx(table[column].to_pylist(), rel=1e-7, abs=0)


def predict_on_two(folder):
    import os

    os.chdir(folder)
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--output=two.csv", "--to=csv"]
    return main(["predict", RUN, *options, "--data.eval_batch_size=50"])


def test_two_processes_write_the_same_rows(run, run_processes):
    assert run_processes(predict_on_two, 2, str(run)) == [0, 0]
    assert main(["predict", RUN]) == 0
    one, two = rows(FILE), rows(run / "two.csv")
    for name in ("index", "source", "target", "prediction"):
        assert [row[name] for row in one] == [row[name] for row in two]
    assert [float(row["probability_3"]) for row in one] == pytest.approx([float(row["probability_3"]) for row in two])


def test_values_are_in_the_units_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", "supervised/diabetes", *QUICK]) == 0
    assert main(["predict", "logs/supervised/diabetes/run"]) == 0
    table = rows("logs/supervised/diabetes/run/predict/predictions.csv")
    assert list(table[0]) == ["index", "source", "target", "prediction"]
    target = load_diabetes().target
    assert [float(row["target"]) for row in table] == pytest.approx([target[int(row["source"])] for row in table])
    predicted = [float(row["prediction"]) for row in table]
    assert min(predicted) > 25  # the smallest target
    assert max(predicted) < 346  # the largest


def test_what_is_no_row_per_sample_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--model.network.dim=16", "--model.network.depth=1", "--data.context=16"]
    assert main(["fit", "-c", "supervised/text", *QUICK, *small]) == 0
    run = tmp_path / "logs/supervised/text/run"
    (run / "predict").mkdir()
    (run / "predict/predictions.csv").write_text("before\n")
    quick = ["--trainer.limit_predict_batches=1", "--data.eval_batch_size=2"]
    assert main(["predict", str(run), *quick]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("leyden: error: 'output' is [2, 16, 256] for a batch, which is no row per sample: --to pt")
    assert [(path.name, path.read_text()) for path in (run / "predict").iterdir()] == [("predictions.csv", "before\n")]
    assert main(["predict", str(run), *quick, "--to=pt"]) == 0
    assert torch.load(run / "predict/predictions.pt", weights_only=True)["output"].shape == (2, 16, 256)


def test_bad_input(run, capsys):
    assert main(["predict", "nowhere"]) == 1
    assert "nowhere is no checkpoint and no run folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", RUN, "--to=xls"])
    assert "invalid choice: 'xls'" in capsys.readouterr().err


def test_names_of_classes_and_samples():
    data = SimpleNamespace(
        class_names=["cat", "dog"],
        num_classes=2,
        dataset=lambda split: SimpleNamespace(sources=[Path("a.png"), Path("b.png"), Path("c.png")]),
    )
    prediction = {
        "output": torch.tensor([[0.0, 0.0], [-1000.0, 0.0]], dtype=torch.bfloat16),
        "index": torch.tensor([2, 0]),
    }
    columns = prediction_columns(prediction, {"target": torch.tensor([1, -1])}, data)
    assert {key: list(value) for key, value in columns.items()} == {
        "index": [2, 0],
        "source": ["c.png", "a.png"],
        "target": ["dog", ""],
        "prediction": ["cat", "dog"],
        "probability_cat": [0.5, 0.0],
        "probability_dog": [0.5, 1.0],
    }


def test_other_tensors_keep_their_names_and_the_batch_may_say_whose_they_are():
    prediction = {"output": torch.tensor([[1.0], [2.0]]), "spread": torch.tensor([[3.0, 4.0], [5.0, 6.0]])}
    batch = {"index": torch.tensor([7, 8]), "source": torch.tensor([0, 1])}
    columns = prediction_columns(prediction, batch, None)
    assert {key: list(value) for key, value in columns.items()} == {
        "index": [7, 8],
        "source": [0, 1],
        "prediction": [1.0, 2.0],
        "spread_0": [3.0, 5.0],
        "spread_1": [4.0, 6.0],
    }
    with pytest.raises(MisconfigurationException, match="must return a dict of tensors.* got Tensor: --to pt"):
        prediction_columns(torch.zeros(2), batch, None)
    with pytest.raises(MisconfigurationException, match="must have 'index'"):
        prediction_columns(prediction, torch.zeros(2), None)
