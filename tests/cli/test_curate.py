"""Training sets made by the command."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from leyden.cli import main
from leyden.data import Digits, pack_tensors, read_tensors

CONFIG = """\
data: {class_path: leyden.data.Digits, init_args: {num_train: 100}}
curation:
  class_path: leyden.curation.PruneAndCombine
  init_args: {predictions: p.safetensors, images_per_class: 2}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(CONFIG)
    logits = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    Path("p.safetensors").write_bytes(pack_tensors({"output": logits, "index": torch.arange(100)}))


def test_the_file_trains(capsys):
    assert main(["curate", "-c", "small.yaml", "--name=a", "--curation.factor=1"]) == 0
    path = "logs/curation/a/dataset.safetensors"
    assert f"leyden: {path}: 20 samples" in capsys.readouterr().err
    made = read_tensors(path)
    source = Digits(num_train=100).datasets()["train"].tensors
    rows = made["source_index"].flatten()
    assert torch.equal(made["input"], source["input"][rows])
    assert torch.equal(made["target"], torch.arange(10).repeat_interleave(2))
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["curation"])["config"]
    assert config["curation"]["init_args"] == {
        "predictions": "p.safetensors", "images_per_class": 2, "factor": 1, "keep": "low"
    }  # fmt: skip
    data = (
        "{class_path: leyden.data.CuratedData, init_args: {source: {class_path: leyden.data.Digits}, batch_size: 10}}"
    )
    quick = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_val_batches=1", "-c", "logger/csv"]
    quick += ["--test_after_fit=false", "--trainer.callbacks.ProgressBar=null", "--trainer.log_every_n_steps=1"]
    assert main(["fit", *quick, f"--data={data}", f"--data.dataset={path}", "--name=x", "--debug"]) == 0


WRONG = {
    "": "the config has no curation",
    "-c small.yaml --curation.factr=2": "'factr' is not an argument of leyden.curation.PruneAndCombine; did you mean",
    "-c small.yaml --curation.factor=0": "PruneAndCombine: images_per_class and factor must be at least 1, got 2 and 0",
    "-c small.yaml --curation.predictions=q": "there is no dataset file q",
    "-c small.yaml --data.num_train=99": "predicts 100 samples, which are not the 99",
    "-c small.yaml --data.num_train=0": "num_train must lie in 1..1258, got 0",
    "-c small.yaml --output p.safetensors": "p.safetensors is there already",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_wrong_calls(capsys, text, message):
    assert main(["curate", *text.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith("leyden: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not Path("logs").exists()
