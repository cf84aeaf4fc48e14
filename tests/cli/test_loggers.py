"""Loggers other than W&B and CSV: what they have written after a fit is read back with their own readers."""

import csv
from pathlib import Path

import pytest

from leyden.cli import main

SMALL = [
    "--name=run",
    "-c",
    "trainer/cpu",
    "-c",
    "trainer/quick",
    "--model.network.width=4",
    "--trainer.callbacks.ProgressBar=null",
    "--trainer.enable_progress_bar=false",
]
RUN = Path("logs/default/run")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def logged(name):
    with open(RUN / "metrics.csv", newline="") as file:
        return [(int(row["step"]), pytest.approx(float(row[name]))) for row in csv.DictReader(file) if row[name]]


def test_tensorboard():
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["fit", *SMALL, "-c", "logger/tensorboard"]) == 0
    events = reader.EventAccumulator(str(RUN / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "val/accuracy", "test/accuracy"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == logged(name)


@pytest.mark.filterwarnings("ignore")  # its own, about SQLAlchemy
def test_mlflow():
    tracking = pytest.importorskip("mlflow.tracking")
    assert main(["fit", *SMALL, "-c", "logger/mlflow", "--model.optimizer.lr=0.1"]) == 0
    client = tracking.MlflowClient("sqlite:///logs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("leyden").experiment_id])
    assert (run.info.run_name, run.info.status) == ("default/run", "FINISHED")
    assert run.data.params["model/optimizer/lr"] == "0.1"
    assert run.data.params["trainer/callbacks/EMA/decay"] == "0.99"
    for name in ("train/loss", "val/accuracy", "test/accuracy"):
        assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)] == logged(name)


@pytest.mark.parametrize("part", ["mlflow", "tensorboard"])
def test_a_package_that_is_missing_is_one_line(part, monkeypatch, capsys):
    for available in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{available}", False)
        monkeypatch.setattr(f"lightning.pytorch.loggers.tensorboard.{available}", False, raising=False)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    assert main(["fit", *SMALL, "-c", f"logger/{part}"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("leyden: error: ")
    assert line.endswith("Logger needs a package that is not there: pip install 'leyden[loggers]'")
    assert not RUN.exists()
