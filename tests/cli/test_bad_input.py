"""Mistakes that only the run itself can notice: one line, nothing lost, no folder of a run that never began."""

import os
import re
import sys
from pathlib import Path

import pytest
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from leyden.cli import main
from leyden.core import MethodCallback

SMALL = ["-c", "trainer/cpu", "-c", "trainer/quick", "--model.network.width=4", "--trainer.callbacks.ProgressBar=null"]
QUICK = [*SMALL, "-c", "logger/csv", "--trainer.enable_progress_bar=false"]
TABLE = ["--model.network=leyden.models.MLP", "--model.network.in_features=2", "--model.network.num_outputs=2"]
RUN = Path("logs/default/run")


class Foreign(BoringModel):
    """A LightningModule that knows nothing of Leyden."""


class Part(MethodCallback):
    """Changes the loss of a Method."""


class ForeignData(BoringDataModule):
    """Goes with it."""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    Path("table.csv").write_text("age,size,grown\n1,2,no\n2,3,yes\n3,4,no\n4,1,yes\n")
    Path("text.ckpt").write_text("no checkpoint")


def error_line(capsys) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("leyden: error: ")
    assert error.count("error:") == 1
    return last.removeprefix("leyden: error: ")


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("logs").rglob("*") if path.is_file()}


MISTAKES = {
    "missing table": (
        ["--data=leyden.data.CSVTable", "--data.path=tabel.csv", "--data.target=grown", *TABLE],
        "path must name a CSV file, but there is no file tabel.csv",
    ),
    "missing column": (
        ["--data=leyden.data.CSVTable", "--data.path=table.csv", "--data.target=grwn", *TABLE],
        "table.csv has no column 'grwn'; the nearest names are 'grown', 'age', 'size'",
    ),
    "missing input column": (
        [
            "--data=leyden.data.CSVTable",
            "--data.path=table.csv",
            "--data.target=grown",
            "--data.columns=[ages]",
            *TABLE,
        ],
        "table.csv has no column 'ages'; the nearest names are 'age', ",
    ),
    "missing text": (["--data=leyden.data.TextFile", "--data.path=no.txt"], "no file no.txt"),
    "missing IDX files": (["--data=leyden.data.MNISTFiles", "--data.root=nowhere"], "nowhere"),
    "missing CIFAR files": (["-c", "data/cifar10", "--data.root=nowhere"], "nowhere"),
    "missing images": (["-c", "data/image_folder", "--data.root=nowhere", "--data.num_workers=0"], "nowhere"),
    "missing checkpoint": (["--ckpt_path=no.ckpt"], "there is no checkpoint no.ckpt"),
    "no checkpoint": (["--ckpt_path=text.ckpt"], "the checkpoint text.ckpt is damaged"),
    "batch larger than the data": (
        ["--data.batch_size=2000"],
        "batch_size must lie in 1..1258 (the training samples), got 2000",
    ),
    "no batch": (["--data.batch_size=0"], "batch_size must lie in 1..1258 (the training samples), got 0"),
    "batch that cannot be shared": (["--data.batch_size=63", "--trainer.accumulate_grad_batches=2"], "63"),
    "part of a Method on a foreign module": (
        ["--trainer.callbacks+=mine.Part", "--model=mine.Foreign", "--data=mine.ForeignData"],
        "Part changes the training step of a leyden.core.Method, but the module is a Foreign: derive it from Method or "
        "use one of leyden.methods",
    ),
    "pattern of no parameter": (
        ["--model.param_groups={'*.biass': {weight_decay: 0.0}}"],
        "param_groups: '*.biass' matches none of the parameters network.body.0.0.weight, ",
    ),
    "setting of another optimizer": (
        ["--model.param_groups={'*.bias': {adapt: false}}"],
        "param_groups: '*.bias' sets 'adapt', which AdamW does not have; it may be ",
    ),
    "package of a strategy": (["-c", "strategy/deepspeed"], "pip install 'leyden[deepspeed]'"),
    "argument out of range": (["--trainer.callbacks.EMA.decay=1.5"], "EMA: decay must lie in [0, 1], got 1.5"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_run_that_cannot_begin_leaves_one_line_and_no_folder(mistake, capsys):
    arguments, expected = MISTAKES[mistake]
    assert main(["fit", *QUICK, *arguments]) == 1
    assert expected in error_line(capsys)
    assert not any(Path("logs/default").rglob("*"))


def test_nothing_is_left_of_its_wandb_run_either(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["fit", *SMALL, "--data.batch_size=2000"]) == 1
    assert "batch_size must lie in 1..1258" in capsys.readouterr().err
    assert not any(Path("logs/default").rglob("*"))


def test_the_traceback_is_shown_when_asked_for(capsys):
    assert main(["fit", *QUICK, "--data.batch_size=2000", "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1] == "leyden: error: batch_size must lie in 1..1258 (the training samples), got 2000"


def test_a_metric_that_is_not_there_is_named_with_those_that_are(capsys):
    assert main(["fit", *QUICK, f"--name={RUN.name}", "--trainer.callbacks.ModelCheckpoint.monitor=val/acc"]) == 1
    line = error_line(capsys)
    assert "'val/acc'" in line
    assert "val/accuracy" in line


def test_a_diverging_run_names_step_and_term(capsys):
    assert main(["fit", *QUICK, f"--name={RUN.name}", "--model.optimizer.lr=1e30"]) == 1
    line = error_line(capsys)
    assert re.fullmatch(r"the loss is not finite in step [12]: term 'task'; no checkpoint was saved yet", line)
    assert (RUN / "config.yaml").is_file()


# ---- a run that exists


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["fit", *QUICK, f"--name={RUN.name}", "--test_after_fit=false"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def in_finished(finished, monkeypatch):
    monkeypatch.chdir(finished)


UNFIT = {
    "other width": (
        ["--model.network.width=8"],
        "the checkpoint does not fit the model: 'network.body.0.0.weight' has shape (4, 1, 3, 3) in the checkpoint and "
        "(8, 1, 3, 3) in the model",
    ),
    "other network": (
        ["--model.network=leyden.models.MLP", "--model.network.in_features=64", "--model.network.num_outputs=10"],
        "the checkpoint does not fit the model: ",
    ),
    "other optimizer": (
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"],
        "the checkpoint has the state of AdamW, which SGD cannot go on with: resume with the same optimizer, or start",
    ),
    "other parameter groups": (
        ["--model.param_groups={'*.bias': {weight_decay: 0.0}}"],
        "the checkpoint has the state of other parameter groups: resume with the same param_groups",
    ),
    "batch larger than the data": (["--data.batch_size=2000"], "batch_size must lie in 1..1258"),
    "misspelt argument": (["--model.network.widht=8"], "did you mean 'width'?"),
    "unknown class": (["--model.network=leyden.models.Convnet"], "did you mean leyden.models.ConvNet?"),
}


@pytest.mark.parametrize("mistake", UNFIT)
@pytest.mark.usefixtures("in_finished")
def test_a_resume_that_does_not_fit_changes_nothing(mistake, capsys):
    arguments, expected = UNFIT[mistake]
    before = contents()
    assert main(["fit", f"--resume={RUN}", "--trainer.max_epochs=2", *arguments]) == 1
    assert expected in error_line(capsys)
    assert contents() == before


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.usefixtures("in_finished")
def test_an_evaluation_that_does_not_fit_leaves_no_folder(command, capsys):
    before = contents()
    wider = ["--model.network.width=8", f"--ckpt_path={RUN}/checkpoints/last.ckpt"]
    assert main([command, *wider]) == 1
    assert "has shape (4, 1, 3, 3) in the checkpoint and (8, 1, 3, 3) in the model" in error_line(capsys)
    assert contents() == before
    assert not (RUN / command).exists()
