"""``leyden combine --method lcsc``: a search by one split, a report on another, and a kill in between."""

import json
from pathlib import Path

import pytest
import torch

from leyden.cli import combining, main
from leyden.weights import combine, lcsc_search

LAST = "logs/default/run/checkpoints"
SEARCH = ["--ckpts", LAST, "--method=lcsc", "--metric=val/loss", "--report=test/accuracy", "--iterations=6", "--debug"]


@pytest.fixture
def _trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("fit", "--name=run", "-c", "trainer/cpu", "--trainer.max_epochs=3", "--trainer.limit_train_batches=6"),
        *("--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1", "--trainer.logger.WandbLogger=null"),
        "--model.network={class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [8]}}",
        *("--trainer.callbacks.ProgressBar=null", "--trainer.callbacks.EMA=null", "--test_after_fit=false", "--debug"),
    ]
    assert main(arguments) == 0
    Path(LAST, "best.ckpt").unlink()
    assert sorted(path.name for path in Path(LAST).iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.usefixtures("_trained")
def test_searches_by_one_split_reports_another_and_goes_on(monkeypatch, capsys):
    assert main(["combine", *SEARCH, "--name=whole"]) == 0
    assert "test/accuracy" in capsys.readouterr().err
    result = torch.load("logs/combine/whole/checkpoints/combined.ckpt", weights_only=True)
    known = json.loads(result["provenance"])
    assert sum(known["coefficients"]) == pytest.approx(1.0)
    assert {"val/loss", "test/accuracy"} <= known["metrics"].keys()
    files = combining.find_files([LAST])
    expected = combine(files, known["coefficients"])
    assert all(torch.equal(tensor, result["state_dict"][name]) for name, tensor in expected.items())

    values = []

    def stopping(evaluate, *arguments, **options):
        def counted(coefficients):
            values.append(coefficients)
            if stop is not None and len(values) > stop:
                raise RuntimeError("killed")
            return evaluate(coefficients)

        return lcsc_search(counted, *arguments, **options)

    monkeypatch.setattr(combining, "lcsc_search", stopping)
    stop = 4
    assert main(["combine", *SEARCH, "--name=killed"]) == 1
    values.clear()
    stop = None
    assert main(["combine", *SEARCH, "--name=killed"]) == 0
    assert len(values) == 5 + 6 - 4
    again = torch.load("logs/combine/killed/checkpoints/combined.ckpt", weights_only=True)
    assert json.loads(again["provenance"])["coefficients"] == known["coefficients"]
    assert [path.name for path in Path("logs/combine/killed/checkpoints").iterdir()] == ["combined.ckpt"]
    assert main(["test", "--ckpt_path=logs/combine/killed/checkpoints/combined.ckpt"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=lcsc"], "lcsc needs a metric to choose by"),
        (["--method=lcsc", "--metric=val/loss", "--report=accuracy"], "report must begin with val/ or test/"),
        (["--method=average", "--metric=val/loss", "--report=test/loss"], "average takes no report"),
        (["--method=lcsc", "--metric=val/loss", "--iterations=-1"], "iterations must be at least 0"),
        (["--method=average", "--iterations=3"], "average takes no iterations; it belongs to lcsc"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert main(["combine", "--ckpts", LAST, *arguments]) != 0
    assert message in capsys.readouterr().err
