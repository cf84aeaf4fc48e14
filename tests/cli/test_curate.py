"""Training sets made by the command."""

import json
import os
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


DISTILLED = """\
data: {class_path: leyden.data.Digits, init_args: {num_train: 50}}
curation:
  class_path: leyden.curation.DATM
  init_args:
    network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: []}}
    experts: expert.ckpt
    ipc: 1
    iterations: 6
    synthetic_steps: 1
    start: 1
    max_start: 1
    threshold: 10.0
"""


def test_numbers_and_a_kill(capsys, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    trajectory = {
        epoch: {"head.weight": torch.randn(10, 64, generator=generator), "head.bias": torch.zeros(10)}
        for epoch in range(3)
    }
    torch.save({"callbacks": {"ExpertTrajectory": {"parameters": trajectory}}}, "expert.ckpt")
    Path("distilled.yaml").write_text(DISTILLED)
    monkeypatch.setattr("leyden.curation.curation.SAVE_EVERY", 2)
    whole, other = Path("whole.safetensors"), Path("other.safetensors")
    assert main(["curate", "-c", "distilled.yaml", f"--output={whole}"]) == 0
    saved = []
    replace = os.replace

    def replace_twice(*paths):
        saved.append(paths)
        if len(saved) == 2:
            raise RuntimeError("killed")
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_twice)
        assert main(["curate", "-c", "distilled.yaml", f"--output={other}"]) == 1
    assert not other.exists()
    assert main(["curate", "-c", "distilled.yaml", f"--output={other}"]) == 0
    assert other.read_bytes() == whole.read_bytes()
    assert not list(Path().glob(".*progress"))
    with safe_open(other, framework="pt") as file:
        assert json.loads(file.metadata()["curation"])["numbers"].keys() == {"student_lr"}
    Path("stages.yaml").write_text("stages: {a: {config: distilled.yaml, run: curate, gives: [dataset, speed]}}")
    assert main(["run", "stages.yaml"]) == 1
    assert "it gives speed, but DATM gives a dataset, student_lr only" in capsys.readouterr().err


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
