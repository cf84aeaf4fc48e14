"""Every experiment names its baseline, parses, trains a few steps and tests."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from leyden.cli.config import config_folder


def test_names_its_baseline(experiment):
    path = config_folder() / ("default.yaml" if experiment == "default" else f"experiment/{experiment}.yaml")
    comment = re.match(r"(#.*\n)+", path.read_text())
    assert comment, f"{path} begins without a comment"
    baseline = re.search(r"Baseline: (\S+\.yaml)", comment[0])
    if baseline is None:
        assert re.search(r"\b(A|a|The|the) baseline\b|What every run starts from", comment[0]), (
            f"the first comment of {path} neither names a baseline ('Baseline: experiment/NAME.yaml') nor says that it "
            "is 'a baseline'"
        )
    else:
        assert (config_folder() / baseline[1]).is_file(), f"{path} names {baseline[1]}, which does not exist"
        assert config_folder() / baseline[1] != path, f"{path} is its own baseline"


def test_parses(fit_experiment, capsys):
    assert main(["fit", *(["-c", fit_experiment] if fit_experiment != "default" else []), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["standalone"] is True


@pytest.mark.sampled(12)
def test_trains_and_tests(experiment, quick_fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(quick_fit(experiment, "smoke", "--trainer.max_epochs=1")) == 0
    (run,) = Path("logs").rglob("smoke")
    assert (run / "checkpoints" / "last.ckpt").is_file()
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("train/loss") for row in rows)
    assert any(row.get("test/loss") for row in rows)
