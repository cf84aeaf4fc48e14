"""Comparisons through the command, in its own processes."""

import hashlib
import json
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

import leyden
from leyden.cli import compare_worker, main
from leyden.cli.compare_worker import finished_result
from leyden.cli.compared_arms import load_arm

NETWORK = """\
# A baseline: a tiny network.
model:
  init_args:
    network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [8]}}
trainer: {max_epochs: 2, limit_train_batches: 4, accelerator: cpu}
"""
BREAKER = """\
import os
from pathlib import Path
from lightning.pytorch import Callback

class BreakOnce(Callback):
    def __init__(self, how: str) -> None:
        pass

    def on_train_batch_end(self, trainer, *args):
        seed = os.environ["PL_GLOBAL_SEED"]
        marker = Path(f"broken_{seed}")
        if trainer.global_step == 6 and not marker.exists():
            marker.touch()
            if seed == "0":
                os.kill(os.getpid(), 9)
            raise ValueError("it broke")
"""


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("plain.yaml").write_text(NETWORK)
    Path("break_once.py").write_text(BREAKER)
    added = "{class_path: break_once.BreakOnce, init_args: {how: in every way}}"
    Path("ours.yaml").write_text(NETWORK[:-2] + f", callbacks+: [{added}]}}\n")
    return tmp_path


def result(config, seed):
    (path,) = Path("logs/compare/runs", config).glob(f"*/seed-{seed}/result.json")
    return json.loads(path.read_text())


def test_broken_resumed_compared_and_recorded(configs, capsys, monkeypatch):
    store = configs / "evidence"
    monkeypatch.setattr("leyden.catalog.evidence.FOLDER", store)
    command = ["compare", "plain.yaml", "ours.yaml", "--seeds=2", "--name=tried", "--record=ours"]

    assert main(command) == 1
    printed = capsys.readouterr()
    assert "ours.yaml, seed 0: its process ended with code -9" in printed.err
    assert "ours.yaml, seed 1: it broke (logs/compare/runs/ours/" in printed.err
    assert "not recorded; failed: ours.yaml, seed 0; ours.yaml, seed 1" in printed.err
    assert "no pair of runs has ended" in printed.out
    assert not store.exists()

    assert main(command) == 0
    # the callback that broke it computes nothing: both configs give the same numbers, also after the interruption
    report = json.loads(Path("logs/compare/tried/report.json").read_text())
    assert report["methods"][0]["difference"]["by_seed"] == {"0": 0.0, "1": 0.0}
    assert report["methods"][0]["difference"]["interval"] == [0.0, 0.0]
    assert report["methods"][0]["changes"]["trainer.callbacks.BreakOnce"][0] is None
    assert result("plain", 0)["metrics"] != result("plain", 1)["metrics"]
    for seed in (0, 1):
        assert result("ours", seed)["resumed"]
        assert result("ours", seed)["seconds"] is None
        assert result("ours", seed)["steps"] == 8
        assert result("ours", seed)["metrics"] == result("plain", seed)["metrics"]
        assert result("plain", seed)["seconds"] > 0
        assert result("plain", seed)["memory"] > 0
    evidence = json.loads((store / "ours.json").read_text())
    assert (evidence["format"], evidence["slug"]) == (1, "ours")
    assert evidence["methods"] == report["methods"]
    for name in ("curves.png", "differences.png"):
        assert Path("logs/compare/tried", name).is_file()

    # all is there: nothing runs
    monkeypatch.setattr("leyden.cli.compare.work", None)
    capsys.readouterr()
    assert main([*command[:4], "--metric=test/loss"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("(finished before)") == 4
    assert "test/loss (less is better), 2 seeds" in printed.out
    assert main([*command[:4], "--metric=test/f1"]) == 1
    printed = capsys.readouterr()
    assert "plain.yaml logged no 'test/f1'; it logged: test/accuracy, test/loss, train/loss_epoch, val/" in printed.err


def test_a_run_is_finished_as_long_as_its_code_is_the_same(tmp_path):
    code = tmp_path / "part.py"
    code.write_text("x = 1")
    digest = hashlib.sha256(b"x = 1").hexdigest()[:16]
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "leyden": leyden.__version__,
    }
    sources = {"versions": versions, "files": {str(code): digest}}
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    assert finished_result(tmp_path) is None  # it has not ended
    (tmp_path / "result.json").write_text('{"steps": 3}')
    assert finished_result(tmp_path) == {"steps": 3}
    code.write_text("x = 2")
    assert finished_result(tmp_path) is None
    code.write_text("x = 1")
    assert finished_result(tmp_path) == {"steps": 3}
    (tmp_path / "sources.json").write_text(json.dumps(sources | {"versions": versions | {"torch": "1"}}))
    assert finished_result(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain.yaml", "plain.yaml"], "a config is named twice"),
        (["plain.yaml", "same.yaml"], "plain.yaml and same.yaml are the same config"),
        (["plain.yaml", "wine.yaml"], "differ in their data: data is leyden.data.Digits and leyden.data.Wine"),
        (["plain.yaml", "nothing.yaml"], "there is no config file 'nothing.yaml'"),
        (["plain.yaml", "ours.yaml", "--set", "trainer.max_epochs"], "--set takes KEY=VALUE, got 'trainer.max_epochs'"),
        (["plain.yaml", "ours.yaml", "--set", "trainer.devices=2"], "plain.yaml asks for several devices"),
        (["plain.yaml", "ours.yaml", "--set", "trainer.max_epoch=2"], "did you mean"),
    ],
)
def test_wrong_calls_take_one_line_and_no_run(configs, arguments, message, capsys):
    Path("same.yaml").write_text(NETWORK)
    Path("wine.yaml").write_text(NETWORK + "data: {class_path: leyden.data.Wine, init_args: {batch_size: 16}}\n")
    assert main(["compare", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("logs").exists()


def test_no_seed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "default", "default", "--seeds=0"])
    assert "--seeds" in capsys.readouterr().err


STAGES = """\
set:
  model.network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [8]}}
  trainer: {max_epochs: 1, limit_train_batches: 4, accelerator: cpu}
stages:
  experts:
    members: 2
    set: {trainer.limit_train_batches: 2}
    gives: [checkpoint, test/accuracy]
  soup:
    run: combine
    set: {method: average, metric: val/loss}
    takes: {ckpts: experts.checkpoint}
    gives: [network, val/loss]
  student:
    set: {trainer.callbacks+: leyden.callbacks.Distillation}
    takes: {trainer.callbacks.Distillation.teacher: soup.network}
"""


def test_stages_against_a_config_and_against_each_other(configs, capsys):
    Path("stages.yaml").write_text(STAGES)
    command = ["compare", "plain.yaml", "stages.yaml", "stages.yaml:experts", "--seeds=2", "--name=tried"]
    assert main(command) == 0
    folders = list(Path("logs/compare/runs/stages").glob("*"))
    assert len(folders) == 1  # both are of the same runs
    result = json.loads((folders[0] / "seed-1" / "result.json").read_text())
    experts = [
        (folders[0] / "seed-1" / "experts" / f"member-{member}" / "config.yaml").read_text() for member in range(2)
    ]
    assert ["seed_everything: 2" in experts[0], "seed_everything: 3" in experts[1]] == [True, True]
    assert "RunRecord" not in experts[0]
    records = json.loads((folders[0] / "seed-1" / "stages.json").read_text())["stages"]
    parts = [records[f"experts/member-{member}"]["metrics"]["test/accuracy"] for member in range(2)]
    assert result["stages"]["experts"]["test/accuracy"] == pytest.approx(sum(parts) / 2)
    assert result["metrics"]["test/accuracy"] == records["student"]["metrics"]["test/accuracy"]
    report = json.loads(Path("logs/compare/tried/report.json").read_text())
    student, mean = ({run["seed"]: run["metrics"]["test/accuracy"] for run in arm["runs"]} for arm in report["methods"])
    assert student[1] == result["metrics"]["test/accuracy"]
    assert mean[1] == result["stages"]["experts"]["test/accuracy"]
    capsys.readouterr()
    assert main(["compare", "stages.yaml:experts", "stages.yaml:student", "--seeds=2", "--name=again"]) == 0
    assert capsys.readouterr().out.count("(finished before)") == 4


def test_stages_that_only_combine_otherwise_are_told_apart():
    one, other = (load_arm(name, [], [0])[0] for name in ("weights/dare_99", "weights/darex_q"))
    assert one.key != other.key
    assert one.key == load_arm("weights/dare_99", [], [1])[0].key


EVALUATOR = """\
# Trains nothing. Baseline: plain.yaml
base: plain
evaluate: {function: evaluators.with_noise, arguments: {scale: 0.0}}
"""
EVALUATORS = """\
import torch

def with_noise(method, data, scale):
    right = count = 0
    for batch in data.test_dataloader():
        noise = scale * torch.randn(batch["input"].shape, generator=torch.Generator().manual_seed(0))
        right += (method(batch["input"] + noise).argmax(-1) == batch["target"]).sum().item()
        count += len(batch["target"])
    return {"test/accuracy": right / count}
"""


def test_an_evaluator_trains_nothing(configs, capsys):
    Path("evaluators.py").write_text(EVALUATORS)
    Path("same.yaml").write_text(EVALUATOR)
    Path("noisy.yaml").write_text(EVALUATOR.replace("0.0", "2.0"))
    command = ["compare", "plain.yaml", "same.yaml", "noisy.yaml", "--seeds=2", "--name=tried"]
    assert main(command) == 0
    assert len(list(Path("logs/compare/runs").glob("*/*/seed-*/metrics.csv"))) == 2  # the fits of plain.yaml
    report = json.loads(Path("logs/compare/tried/report.json").read_text())
    same, noisy = (arm["difference"]["by_seed"] for arm in report["methods"])
    assert same == {"0": pytest.approx(0.0, abs=1e-6), "1": pytest.approx(0.0, abs=1e-6)}  # means in another order
    assert any(abs(difference) > 0.001 for difference in noisy.values())
    assert "evaluate" in report["methods"][0]["changes"]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("(finished before)") == 6


WRONG = {
    "plain.yaml:x": "plain.yaml has no stages, so that there is no 'x' in it",
    "stages.yaml:x": "stages.yaml has no stage 'x'; there are: experts, soup, student",
    "nowhere.yaml": "there is no config file 'nowhere.yaml'",
    "bad.yaml": "bad.yaml:2: evaluate needs a function",
    "more.yaml": "more.yaml:4: a file that evaluates has no 'trainer': its base trains",
    "few.yaml": "evaluators.with_noise: missing a required argument: 'scale'",
    "none.yaml": "there is no function evaluators.nothing",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items())
def test_what_cannot_be_compared(configs, capsys, name, message):
    Path("evaluators.py").write_text(EVALUATORS)
    Path("stages.yaml").write_text(STAGES)
    Path("bad.yaml").write_text("base: plain\nevaluate: 3\n")
    Path("more.yaml").write_text(EVALUATOR + "trainer: {max_epochs: 3}\n")
    Path("few.yaml").write_text(EVALUATOR.replace("{scale: 0.0}", "{}"))
    Path("none.yaml").write_text(EVALUATOR.replace("with_noise", "nothing"))
    assert main(["compare", "plain.yaml", name, "--seeds=1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("leyden: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not Path("logs").exists()


def test_a_run_that_a_scheduler_ends_is_not_recorded_as_failed(tmp_path, monkeypatch):
    class Exited(BaseException):
        pass

    def leave(code):
        raise Exited(code)

    def end(job, seed):
        raise SIGTERMException

    monkeypatch.setattr(compare_worker, "_run", end)
    monkeypatch.setattr(os, "_exit", leave)
    job = SimpleNamespace(folder=tmp_path, run_folder=lambda seed: tmp_path / f"seed-{seed}", evaluate=None)
    with pytest.raises(Exited, match="143"):
        compare_worker.make_run(job, 0)
    assert not (tmp_path / "seed-0/result.json").exists()
