"""Runs through the real command: what lies in the run folder, how a run goes on, how it ends."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import SIGTERMException

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

QUICK = [
    "-c",
    "trainer/cpu",
    "-c",
    "trainer/quick",
    "-c",
    "logger/csv",
    "--model.network.width=4",
    "--trainer.callbacks.ProgressBar=null",
    "--trainer.enable_progress_bar=false",
]


class Foreign(BoringModel):
    """A LightningModule that knows nothing of Leyden, and keeps its hyperparameters in its checkpoints."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def during_fit(monkeypatch):
    """``during_fit(function)`` calls it with the trainer at the start of training."""

    def patch(function):
        monkeypatch.setattr(LastCheckpoint, "on_train_start", lambda self, trainer, module: function(trainer))

    return patch


def fit(*arguments):
    return main(["fit", *QUICK, *arguments])


def files(folder="."):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_everything_lies_in_the_run_folder(capsys, during_fit):
    roots = []
    during_fit(lambda trainer: roots.append(trainer.default_root_dir))
    assert fit("--name=first") == 0
    run = Path("logs/default/first")
    assert files() == [
        "logs/default/first/checkpoints/best.ckpt",
        "logs/default/first/checkpoints/last.ckpt",
        "logs/default/first/config.yaml",
        "logs/default/first/metrics.csv",
        "logs/default/first/record/sessions.json",
        "logs/default/first/record/test.json",
        "logs/default/first/record/timing.csv",
        "logs/default/first/report.html",
    ]
    assert roots == [str(run)]
    metrics = rows(run / "metrics.csv")
    assert [row["step"] for row in metrics if row["train/loss"]] == ["0", "1", "2", "3"]
    (tested,) = [row for row in metrics if row["test/accuracy"]]
    printed = capsys.readouterr().out
    assert "default/first" in printed
    assert re.search(rf"test/accuracy +│ {float(tested['test/accuracy']):.4f} ", printed)
    assert re.search(r"epochs +│ 1 ", printed)
    # three convolutions without bias, three batch norms, one linear layer
    parameters = 9 * (4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16) + 17 * 10
    assert re.search(rf"parameters +│ {parameters:,} ", printed)
    for path in (run / "checkpoints/best.ckpt", run / "metrics.csv", run / "config.yaml", run / "report.html"):
        assert str(path) in printed


def test_the_saved_config_is_the_whole_one_and_names_no_folder(capsys):
    assert fit("--name=first", "--seed_everything=3", "--test_after_fit=false") == 0
    saved = Path("logs/default/first/config.yaml").read_text()
    assert "first" not in saved
    config = yaml.safe_load(saved)
    assert config["seed_everything"] == 3
    assert config["trainer"]["default_root_dir"] is None
    assert config["model"]["init_args"]["network"]["init_args"]["width"] == 4
    capsys.readouterr()
    assert main(["fit", "-c", "logs/default/first/config.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == config


def test_the_same_config_is_the_same_run():
    assert fit("--name=first") == 0
    assert main(["fit", "-c", "logs/default/first/config.yaml", "--name=again"]) == 0
    assert Path("logs/default/again/metrics.csv").read_text() == Path("logs/default/first/metrics.csv").read_text()
    assert Path("logs/default/again/config.yaml").read_text() == Path("logs/default/first/config.yaml").read_text()


def test_runs_without_name_are_told_apart():
    for _ in range(2):
        assert fit("--test_after_fit=false", "--trainer.limit_train_batches=1") == 0
    assert len(list(Path("logs/default").iterdir())) == 2


def test_fast_dev_run_leaves_nothing():
    assert fit("--trainer.fast_dev_run=true") == 0
    assert files() == []


def test_a_taken_name_is_refused(capsys):
    assert fit("--name=first", "--trainer.limit_train_batches=1") == 0
    before = {path: Path(path).read_bytes() for path in files()}
    capsys.readouterr()
    assert fit("--name=first") == 1
    assert "'leyden fit --resume logs/default/first'" in capsys.readouterr().err
    assert {path: Path(path).read_bytes() for path in files()} == before


def test_the_default_run_learns_the_digits():
    assert main(["fit", "-c", "logger/csv", "--name=first", "--trainer.accelerator=cpu"]) == 0
    (tested,) = [row for row in rows("logs/default/first/metrics.csv") if row["test/accuracy"]]
    assert float(tested["test/accuracy"]) >= 0.98


# ---- going on


def test_resume_continues_with_the_config_of_the_run(during_fit):
    assert fit("--name=first", "--model.optimizer.lr=0.02", "--trainer.log_every_n_steps=2") == 0
    steps = []
    during_fit(lambda trainer: steps.append((trainer.global_step, trainer.max_epochs, trainer.log_every_n_steps)))
    assert main(["fit", "--resume=logs/default/first", "--trainer.max_epochs=2"]) == 0
    assert steps == [(4, 2, 2)]
    config = yaml.safe_load(Path("logs/default/first/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02
    assert config["ckpt_path"] is None
    metrics = rows("logs/default/first/metrics.csv")
    assert [row["step"] for row in metrics if row["train/loss"]] == ["1", "3", "5", "7"]
    assert [row["step"] for row in metrics if row["test/loss"]] == ["8"]  # not that of the first fit
    assert os.listdir("logs/default") == ["first"]


def test_resume_without_checkpoint_starts_from_the_beginning(capfd):
    assert fit("--name=first", "--trainer.limit_train_batches=1") == 0
    whole = Path("logs/default/first/metrics.csv").read_text()
    for path in Path("logs/default/first/checkpoints").iterdir():
        path.unlink()
    capfd.readouterr()
    assert main(["fit", "--resume=logs/default/first"]) == 0
    assert "logs/default/first has no checkpoint yet: it starts from the beginning" in capfd.readouterr().err
    assert Path("logs/default/first/metrics.csv").read_text() == whole


def test_a_damaged_checkpoint_is_named_with_the_one_to_go_on_from(capsys):
    assert fit("--name=first", "--trainer.max_epochs=2", "--trainer.limit_train_batches=1") == 0
    folder = Path("logs/default/first/checkpoints")
    assert (folder / "previous.ckpt").is_file()
    os.utime(folder / "best.ckpt", (0, 0))
    os.truncate(folder / "last.ckpt", 1000)
    capsys.readouterr()
    assert main(["fit", "--resume=logs/default/first"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the checkpoint {folder}/last.ckpt is damaged (" in error
    command = error.split("go on from there: leyden ")[1].split()
    assert command == ["fit", "--resume", "logs/default/first", "--ckpt_path", f"{folder}/previous.ckpt"]
    assert main(command) == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2


def test_what_is_typed_wins_over_what_a_checkpoint_saved(monkeypatch, during_fit):
    monkeypatch.setitem(sys.modules, "foreign", sys.modules[__name__])
    arguments = ["--model=foreign.Foreign", "--data=lightning.pytorch.demos.boring_classes.BoringDataModule"]
    arguments += ["--trainer.callbacks.ModelCheckpoint=null", "--model.lr=0.1"]
    assert main(["fit", *[a for a in QUICK if "network" not in a], *arguments, "--name=first"]) == 0
    rates = []
    during_fit(lambda trainer: rates.append(trainer.lightning_module.hparams.lr))
    assert main(["fit", "--resume=logs/default/first", "--model.lr=0.5", "--trainer.max_epochs=2"]) == 0
    assert rates == [0.5]


def test_evaluation_of_a_checkpoint_uses_the_config_of_its_run_and_leaves_it_alone(capsys):
    assert fit("--name=first") == 0
    run = Path("logs/default/first")
    before = {path: Path(path).read_bytes() for path in files()}
    (trained,) = [row["test/loss"] for row in rows(run / "metrics.csv") if row["test/loss"]]
    assert main(["test", f"--ckpt_path={run}/checkpoints/best.ckpt"]) == 0
    assert rows(run / "test/metrics.csv")[0]["test/loss"] == trained
    assert main(["validate", f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    assert main(["predict", f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    assert {path: Path(path).read_bytes() for path in before} == before
    new = {
        f"{run}/test/metrics.csv",
        f"{run}/test/record/test.json",
        f"{run}/validate/metrics.csv",
        f"{run}/predict/predictions.csv",
    }
    assert set(files()) - before.keys() == new


def test_evaluation_without_checkpoint():
    assert main(["test", *QUICK]) == 0
    metrics, record = files()
    assert re.fullmatch(r"logs/default/[-_\d]+/metrics.csv", metrics)
    assert record.endswith("/record/test.json")


# ---- ends


def raising(error):
    def function(trainer):
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("batch_size must be\n  positive"), "leyden: error: batch_size must be positive"),
        (FileNotFoundError(2, "No such file", "x.csv"), "leyden: error: [Errno 2] No such file: 'x.csv'"),
        (KeyError("x"), r"leyden: error: KeyError: 'x' (test_fit.py:"),
    ],
)
def test_an_error_of_the_run_is_one_line(error, line, during_fit, capsys):
    during_fit(raising(error))
    assert fit() == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(line)
    assert last.endswith("run again with --debug for the traceback") == isinstance(error, KeyError)


def test_a_bad_argument_of_a_callback_is_one_line(capsys):
    assert fit("--trainer.callbacks.EMA.decay=2") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "leyden: error: EMA: decay must lie in [0, 1], got 2.0"
    assert files() == []


def test_ctrl_c(during_fit):
    handler = signal.getsignal(signal.SIGINT)
    during_fit(raising(KeyboardInterrupt()))
    try:
        assert fit() == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on


def test_sigterm(during_fit):
    during_fit(raising(SIGTERMException()))
    assert fit() == 143


# ---- processes


def test_processes_started_by_lightning_share_one_folder(tmp_path):
    command = [sys.executable, "-m", "leyden.cli", "fit", *QUICK, "-c", "trainer/ddp_2cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    (run,) = Path("logs/default").iterdir()
    assert files(run) == [
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.csv",
        "record/sessions.json",
        "record/test.json",
        "record/timing.csv",
        "report.html",
    ]
    assert [row["step"] for row in rows(run / "metrics.csv") if row["train/loss"]] == ["0", "1", "2", "3"]
