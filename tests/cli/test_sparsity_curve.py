from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from leyden.cli import main
from leyden.data import Digits
from leyden.models import MLP

MODEL = ("-c", "optimization/digits_mlp", "--model.network.hidden=[16,16]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a small network has been trained."""
    path = tmp_path_factory.mktemp("curve")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        quick = ["-c", "logger/csv", *MODEL, "--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--name=run"]
        assert main(["fit", *quick, "--trainer.callbacks.ProgressBar=null", "--debug"]) == 0
    return path


@pytest.fixture
def curve(folder, monkeypatch, capsys):
    """``curve(...)``: exit code, lines and error of the command on the checkpoint."""
    monkeypatch.chdir(folder)

    def run(*arguments, checkpoint="logs/optimization/digits_mlp/run/checkpoints/last.ckpt"):
        code = main(["sparsity-curve", checkpoint, "--trainer.accelerator=cpu", *arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


def accuracy(path: Path, sparsity: float) -> float:
    """Of the validation samples, pruned by torch."""
    network = MLP(64, 10, (16, 16))
    state = torch.load(path / "logs/optimization/digits_mlp/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    layers = [(layer, "weight") for layer in network.body if isinstance(layer, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=sparsity)
    data = Digits(seed=0)
    samples = data.datasets()["val"]
    batch = samples.__getitems__(list(range(len(samples))))
    return (network.eval()(batch["input"]).argmax(1) == batch["target"]).float().mean().item()


def test_curve_is_that_of_torch_pruning(curve, folder):
    code, lines, _ = curve("--sparsities", "0.5", "0.95", "--patterns", "1:4", "--tolerance", "0.6")
    assert code == 0
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows[:4]] == ["0", "0.5", "0.95", "1:4"]
    for row, sparsity in zip(rows, (0.0, 0.5, 0.95), strict=False):
        assert float(row[1]) == pytest.approx(accuracy(folder, sparsity), abs=1e-4)
    assert lines[4].startswith("val/accuracy within 0.6 of dense up to a sparsity of 0.")


def test_control_and_a_metric_of_which_less_is_better(curve):
    code, lines, _ = curve("--sparsities", "0.9", "--random", "--metric", "test/loss", "--skip")
    assert code == 0
    dense, pruned = (float(line.split()[1]) for line in lines[:2])
    assert pruned > dense + 0.01
    assert lines[2] == "test/loss within 0.01 of dense up to a sparsity of 0"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--sparsities", "2"), "sparsity must lie in [0, 1], got 2.0"),
        (("--patterns", "4:2"), "--patterns takes N:M with 1 <= N <= M, such as 2:4, got '4:2'"),
        (("--metric", "accuracy"), "--metric must begin with val/ or test/, got 'accuracy'"),
        (("--metric", "val/f1"), "there is no metric val/f1; there are val/accuracy, val/loss"),
        (("--skip", "haed"), "skip: there is no module 'haed' in MLP"),
    ],
)
def test_bad_input_is_one_line(curve, arguments, error):
    code, lines, err = curve(*arguments)
    assert (code, lines) == (1, [])
    assert f"leyden: error: {error}" in err


def test_a_checkpoint_without_its_run(curve, tmp_path):
    code, _, err = curve(checkpoint="nowhere.ckpt")
    assert (code, err) == (1, "leyden: error: there is no checkpoint nowhere.ckpt\n")
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(b"")
    code, _, err = curve(checkpoint=str(alone))
    assert code == 1
    assert "lies in no run folder, whose config would evaluate it: name one by -c" in err
