"""What users of other templates suffer from, tried through the command."""

import csv
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import wandb
import yaml

from leyden.cli import main
from leyden.cli.prediction_writer import _joined
from leyden.cli.summary import print_summary
from leyden.core.callback import NumberedCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import ConvNet

SMALL = ["-c", "trainer/cpu", "-c", "trainer/quick", "--model.network.width=4", "--trainer.callbacks.ProgressBar=null"]
QUICK = [*SMALL, "-c", "logger/csv", "--trainer.enable_progress_bar=false"]
RUN = Path("logs/default/run")


class Counter(NumberedCallback):
    """Counts batches from a number on."""

    def __init__(self, start: int) -> None:
        self.count = start

    def on_train_batch_end(self, *args):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])


def fit(*arguments: str) -> int:
    return main(["fit", *QUICK, *arguments])


def resume(*arguments: str, run: Path = RUN) -> int:
    return main(["fit", f"--resume={run}", *arguments])


def checkpoint(name: str = "last", run: Path = RUN) -> dict:
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


def rates(run: Path) -> list[tuple[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [(row["step"], row["lr-AdamW"]) for row in csv.DictReader(file) if row["lr-AdamW"]]


# ---- the same run


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    assert fit("--name=run", "--model.network.dropout=0.3") == 0
    assert fit("--name=again", "--model.network.dropout=0.3") == 0
    assert fit("--name=other", "--model.network.dropout=0.3", "--seed_everything=1") == 0
    weights = [checkpoint(run=RUN.with_name(name))["state_dict"] for name in ("run", "again", "other")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.slow  # minutes, if the compiler has cached nothing yet
@pytest.mark.filterwarnings("default")  # those of the compiler itself
def test_a_compiled_run_trains_and_goes_on_like_a_plain_one():
    assert fit("--name=plain") == 0
    assert fit("--name=run", "--model.compile=true") == 0
    plain, compiled = (checkpoint(run=RUN.with_name(name))["state_dict"] for name in ("plain", "run"))
    assert plain.keys() == compiled.keys()  # a checkpoint does not tell whether it was compiled
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert resume("--trainer.max_epochs=2") == 0
    assert checkpoint()["global_step"] == 8
    assert resume("--trainer.max_epochs=3", "--model.compile=false") == 0
    assert checkpoint()["global_step"] == 12


# ---- a run that goes on


def test_two_callbacks_of_a_class_keep_a_state_each():
    two = "[{class_path: mine.Counter, init_args: {start: 10}}, {class_path: mine.Counter, init_args: {start: 20}}]"
    assert fit("--name=run", f"--trainer.callbacks+={two}") == 0
    assert resume("--trainer.max_epochs=2") == 0
    saved = checkpoint()["callbacks"]
    assert (saved["Counter"], saved["Counter_2"]) == ({"count": 18}, {"count": 28})


def test_a_finished_run_that_is_prolonged_has_the_rates_of_the_longer_one():
    assert fit("--name=run", "--trainer.max_epochs=2") == 0
    assert fit("--name=long", "--trainer.max_epochs=3") == 0
    assert resume("--trainer.max_epochs=3") == 0
    prolonged, long = rates(RUN), rates(RUN.with_name("long"))
    assert [step for step, _ in prolonged] == [step for step, _ in long]
    assert prolonged[8:] == long[8:]
    assert min(float(rate) for _, rate in prolonged[8:]) > 0


def test_a_finished_run_goes_on_to_its_test_only():
    assert fit("--name=run") == 0
    before = checkpoint()
    config = (RUN / "config.yaml").read_text()
    assert resume() == 0
    assert checkpoint()["global_step"] == before["global_step"]
    assert (RUN / "config.yaml").read_text() == config


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_that_was_moved_or_copied_knows_its_best_score(moved, tmp_path):
    assert fit("--name=run") == 0
    before = best_state(checkpoint())
    new = tmp_path / "elsewhere" / "run"
    (shutil.move if moved else shutil.copytree)(RUN, new)
    best = (new / "checkpoints/best.ckpt").read_bytes()
    # it gets worse from here on: the best checkpoint must not be replaced
    assert resume("--trainer.max_epochs=2", "--model.optimizer.lr=10.0", run=new) == 0
    after = best_state(checkpoint(run=new))
    assert (new / "checkpoints/best.ckpt").read_bytes() == best
    assert after["best_model_score"] == before["best_model_score"]
    assert after["best_model_path"] == str(new / "checkpoints/best.ckpt")
    assert list(after["best_k_models"]) == [after["best_model_path"]]
    assert main(["test", f"--ckpt_path={new}/checkpoints/best.ckpt"]) == 0


def best_state(saved: dict) -> dict:
    (state,) = [state for name, state in saved["callbacks"].items() if name.startswith("ModelCheckpoint")]
    return state


def test_a_new_run_from_the_checkpoint_of_another_keeps_its_own_best():
    assert fit("--name=run") == 0
    other = (RUN / "checkpoints/best.ckpt").read_bytes()
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        assert fit("--name=new", f"--ckpt_path={RUN}/checkpoints/last.ckpt", "--trainer.max_epochs=2") == 0
    new = RUN.with_name("new")
    assert best_state(checkpoint(run=new))["best_model_path"] == str(new.resolve() / "checkpoints/best.ckpt")
    assert (RUN / "checkpoints/best.ckpt").read_bytes() == other


# ---- files


def test_the_second_run_in_a_folder_does_not_mind_the_first():
    assert fit() == 0
    assert fit() == 0
    assert sorted(os.listdir()) == ["logs"]
    assert len(os.listdir("logs/default")) == 2


def test_a_run_with_nothing_to_train_has_its_config_too():
    assert fit("--name=run", "--trainer.max_epochs=0") == 0
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["max_epochs"] == 0


def test_predictions_are_written_in_the_order_of_the_data():
    assert fit("--name=run") == 0
    assert main(["predict", f"--ckpt_path={RUN}/checkpoints/best.ckpt", "--data.eval_batch_size=50", "--to=pt"]) == 0
    predicted = torch.load(RUN / "predict/predictions.pt", weights_only=True)
    data = Digits()
    samples = data.dataset("test")
    images = torch.stack([samples[i]["input"] for i in range(len(samples))])
    assert predicted["index"].tolist() == list(range(len(images)))
    method = Classification(ConvNet(1, 10, width=4), optimizer=None).eval()
    method.load_state_dict(torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["state_dict"], strict=False)
    with torch.no_grad():
        torch.testing.assert_close(predicted["output"], method(images), rtol=1e-4, atol=1e-5)


def test_data_say_what_they_are():
    data = Digits(batch_size=32, seed=7)
    assert str(data) == "Digits(batch_size=32, seed=7, samples=not read yet)"
    data.setup("fit")
    assert str(data) == "Digits(batch_size=32, seed=7, samples={'train': 1258, 'val': 180, 'test': 359})"


# ---- W&B


def test_the_table_comes_last_and_wandb_is_brief(monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_QUIET", "")
    monkeypatch.delenv("WANDB_QUIET")
    running = []
    monkeypatch.setattr(
        "leyden.cli.summary.print_summary", lambda *args: (running.append(wandb.run), print_summary(*args))
    )
    assert main(["fit", *SMALL, "--name=run"]) == 0
    assert running == [None]  # it has ended, and said what it has to say
    error = capfd.readouterr().err
    assert "wandb:" in error
    assert "anonymous" not in error
    assert "Run history" not in error
    assert Path(RUN, "wandb").is_dir()


def test_predictions_of_several_processes_are_put_in_order():
    parts = [{"index": torch.tensor([0, 2]), "output": torch.tensor([[0.0], [2.0]])}]
    parts.append({"index": torch.tensor([1]), "output": torch.tensor([[1.0]])})
    joined = _joined(parts)
    assert joined["index"].tolist() == [0, 1, 2]
    assert joined["output"].tolist() == [[0.0], [1.0], [2.0]]
    assert _joined(["a", "b"]) == ["a", "b"]  # of a foreign module
