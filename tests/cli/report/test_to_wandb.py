"""The pictures of the page in a real offline run of W&B, read with its own reader."""

import json
import subprocess
from pathlib import Path

import matplotlib.image
import pytest
from wandb.util import get_core_path

from leyden.cli import main


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_QUIET", "true")


def read_history(folder):
    """What was logged, by name, each with its last value; and the folder of the files."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-run-file", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [record for record in map(json.loads, lines) if record["type"] == "history"]
    return {
        name: value for record in records for name, value in record["history"]["item"].items()
    }, path.parent / "files"


def test_page_pictures_and_samples_are_logged():
    quick = ["-c", "trainer/cpu", "-c", "trainer/quick", "-c", "logger/wandb", "--model.network.width=4"]
    quick += ["--trainer.callbacks.ProgressBar=null", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *quick, "--name=a", "--trainer.callbacks.RunRecord.num_worst=3"]) == 0
    folder = Path("logs/default/a")
    values, files = read_history(folder)
    for name in ("page", "confusion_matrix", "worst_samples"):
        assert values[f"report/{name}._type"] == "html-file"
    page = (files / values["report/page.path"]).read_text()
    assert page == (folder / "report.html").read_text()
    assert "predicted class" in (files / values["report/confusion_matrix.path"]).read_text()

    worst = json.loads((folder / "record" / "test.json").read_text())["worst"]
    assert values["report/worst_images.count"] == 3
    assert values["report/worst_images.captions"] == [
        f"{s['index']}: {s['prediction']}, truly {s['target']}" for s in worst
    ]
    for path in values["report/worst_images.filenames"]:
        assert matplotlib.image.imread(files / path).shape[:2] == (8, 8)
