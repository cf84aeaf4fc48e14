"""Sweeps through the command, and what Optuna is asked to do."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from leyden.cli import main
from leyden.cli.sweep_file import read_sweep

pytest.importorskip("optuna")

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from leyden.cli import sweep_study
from leyden.cli.commands import Arguments, load_tree
from leyden.cli.config import ConfigError
from leyden.cli.sweep import _parse, _Sweep, _Worker
from leyden.cli.sweep_fit import NotLoggedError, SweepFit
from leyden.cli.sweep_study import SweepStudy
from leyden.cli.sweep_worker import SweepRun

BASE = """\
model:
  init_args:
    network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [8]}}
trainer:
  max_epochs: 2
  limit_train_batches: 4
  limit_val_batches: 2
  accelerator: cpu
  log_every_n_steps: 1
  logger: {WandbLogger: null}
"""
GRID = """\
program: leyden
command: [leyden, fit, -c, base.yaml, "${args}"]
method: grid
metric: {name: val/loss}
parameters:
  model.optimizer.lr: {values: [0.003, 0.03]}
  data.batch_size: {values: [32, 64]}
"""
BAYES = """\
command: [leyden, fit, -c, base.yaml, "${args}"]
method: bayes
metric: {name: val/loss}
parameters:
  x: {min: -1.0, max: 3.0}
  y: {distribution: log_uniform_values, min: 0.001, max: 10.0}
  z: {values: [a, b, c]}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)


def write(text):
    Path("sweep.yaml").write_text(text)
    return read_sweep(Path("sweep.yaml"))


def study(text, name="study", seed=0):
    return SweepStudy(Path(name), write(text), seed, [])


@pytest.fixture
def quick_storage(monkeypatch):
    """Optuna's journal: SQLite waits for the disk at each of some thousand writes."""
    monkeypatch.setattr(sweep_study, "_storage", lambda folder: JournalStorage(JournalFileBackend(f"{folder}.log")))


def logged(run, name):
    with open(run / "metrics.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


# ---- the command


def test_a_grid_that_is_interrupted_goes_on_and_leaves_the_best_config(capfd, monkeypatch):
    write(GRID)
    command = ["sweep", "sweep.yaml", "--name=tried"]
    end = _Sweep._end

    def interrupt(self, trial, *message):
        if trial.number == 1:
            raise KeyboardInterrupt
        end(self, trial, *message)

    with monkeypatch.context() as patch:
        patch.setattr(_Sweep, "_end", interrupt)
        assert main(command) == 130
    folder = Path("logs/sweep/tried")
    assert sorted(path.name for path in folder.glob("run-*")) == ["run-000", "run-001"]
    # as if the process had been killed after the first of its two epochs
    checkpoints = folder / "run-001" / "checkpoints"
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == 1
    (checkpoints / "previous.ckpt").replace(checkpoints / "last.ckpt")
    assert capfd.readouterr().err.endswith("leyden: interrupted; the same command goes on\n")

    assert main(command) == 0
    printed = capfd.readouterr().out
    assert [printed.count(f"run {number}: val/loss ") for number in range(4)] == [0, 1, 1, 1]
    assert "leyden: the best config: leyden fit -c logs/sweep/tried/best.yaml" in printed
    done = SweepStudy(folder, read_sweep(Path("sweep.yaml")), 0, [])
    assert [trial.state for trial in done.trials] == [TrialState.COMPLETE] * 4
    assert [done.typed(trial) for trial in done.trials] == done.sweep.grid()

    # what each run logged itself; the one that was interrupted is as long as the others
    losses = [logged(folder / f"run-{number:03d}", "val/loss") for number in range(4)]
    assert [len(values) for values in losses] == [2] * 4
    assert [trial.value for trial in done.trials] == pytest.approx([min(values) for values in losses])
    assert [list(trial.intermediate_values.values()) for trial in done.trials] == [pytest.approx(v) for v in losses]

    best = min(range(4), key=lambda number: min(losses[number]))
    content = (folder / "best.yaml").read_text()
    assert content.startswith(f"# Run {best} of 4 of the sweep sweep.yaml: val/loss ")
    point = done.sweep.grid()[best]
    assert main(["fit", "-c", str(folder / "best.yaml"), "--print_config"]) == 0
    config = yaml.safe_load(capfd.readouterr().out)
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == float(point["model.optimizer.lr"])
    assert config["data"]["init_args"]["batch_size"] == int(point["data.batch_size"])
    assert config["test_after_fit"] is True


def test_runs_that_diverge_and_fail_two_at_a_time(capfd):
    write(GRID.replace("[0.003, 0.03]", "[0.03, 1.0e+30]").replace("[32, 64]", "[64, 100000]"))
    assert main(["sweep", "sweep.yaml", "--jobs=2"]) == 0
    printed = capfd.readouterr()
    done = SweepStudy(Path("logs/sweep/sweep"), read_sweep(Path("sweep.yaml")), 0, [])
    ends = {tuple(done.typed(trial).values()): trial for trial in done.trials}
    assert ends["0.03", "64"].user_attrs["outcome"] == "complete"
    assert ends["1e+30", "64"].user_attrs["outcome"] == "diverged"
    failed = [trial for trial in done.trials if trial.state == TrialState.FAIL]
    assert len(failed) == 2
    assert all("batch_size must lie in 1.." in trial.user_attrs["message"] for trial in failed)
    assert printed.err.count("leyden: error: run ") == 2
    assert "diverged: the loss is not finite" in printed.out


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        (
            ("model.optimizer.lr", "model.optimizer.lrr"),
            [],
            "'lrr' is not an argument of torch.optim.AdamW; did you mean 'lr'?",
        ),
        (("[32, 64]", "[32, many]"), [], "data.batch_size"),
        (("[32, 64]", "[32]"), ["--set", "data.batch_size=8"], "--set data.batch_size: the sweep varies it"),
        (("[32, 64]", "[32]"), ["--set", "data.batch_size"], "--set takes KEY=VALUE, got 'data.batch_size'"),
        (("[32, 64]", "[32]"), ["--set", "trainer.devices=2"], "a sweep makes each run on one device"),
    ],
)
def test_a_mistake_is_one_line_before_the_first_run(change, arguments, expected, capsys):
    write(GRID.replace(*change))
    assert main(["sweep", "sweep.yaml", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("leyden: error: ")
    assert expected in line
    assert not Path("logs").exists()


def fit(metric, *, should_stop=lambda iteration, value: False, **options):
    tree, files = load_tree("fit", Arguments(config=["base.yaml"], options=[(k, str(v)) for k, v in options.items()]))
    Path("run").mkdir()
    return SweepFit(SweepRun(Path("run"), tree, files, metric, "max"), should_stop)


def test_a_metric_that_is_not_logged():
    with pytest.raises(NotLoggedError, match="no 'val/acc' was logged; these were: .*val/accuracy, val/loss"):
        fit("val/acc")
    assert len(logged(Path("run"), "val/loss")) == 1


def test_the_value_of_a_test():
    assert fit("test/accuracy").value == pytest.approx(logged(Path("run"), "test/accuracy")[0])


def test_the_best_value_of_training():
    seen = []
    value = fit("train/loss_epoch", should_stop=lambda *told: seen.append(told)).value
    assert [told for _, told in seen] == pytest.approx(logged(Path("run"), "train/loss_epoch"))
    assert [iteration for iteration, _ in seen] == [1, 2]
    assert value == max(told for _, told in seen)


def test_optuna_is_asked_for(capsys, monkeypatch):
    write(GRID)
    monkeypatch.delitem(sys.modules, "leyden.cli.sweep_study")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "sweep.yaml"]) == 1
    assert capsys.readouterr().err == "leyden: error: leyden sweep needs Optuna: pip install 'leyden[sweep]'\n"


def test_runs_are_a_wandb_group():
    Path("base.yaml").write_text(BASE.replace("  logger: {WandbLogger: null}\n", ""))
    write(GRID)
    tried = _Sweep(_parse(["sweep.yaml", "--name=tried"]))
    tried.folder.mkdir(parents=True)
    tried.study = tried._open()
    trial = tried.study.ask()

    def wandb():
        loggers = tried._run_of(trial).tree["trainer"]["logger"]
        return next(logger["init_args"] for logger in loggers if logger["class_path"].endswith("WandbLogger"))

    first = wandb()
    assert (first["group"], first["job_type"], first["name"]) == ("sweep/tried", "sweep", "sweep/tried/run-000")
    assert first["resume"] == "allow"
    assert len(first["id"]) == 9
    assert wandb() == first  # also after an interruption
    tried.study.tell(trial, "failed", None, message="")
    trial = tried.study.ask()
    assert wandb()["id"] != first["id"]


class DeadConnection:
    def recv(self):
        raise EOFError


@pytest.mark.usefixtures("quick_storage")
def test_a_process_that_is_killed_and_runs_that_all_fail(capsys):
    write(GRID)
    tried = _Sweep(_parse(["sweep.yaml", "--runs=4"]))
    tried.folder.mkdir(parents=True)
    tried.study = tried._open()
    process = SimpleNamespace(join=lambda: None, exitcode=-9)
    for number in range(3):
        assert not tried._hear(_Worker(process, DeadConnection(), tried._next()))
        line = capsys.readouterr().err
        assert line.startswith(f"leyden: error: run {number} (model.optimizer.lr=")
        assert line.endswith(f": its process ended with code -9 (logs/sweep/sweep/run-{number:03d}/output.log)\n")
    with pytest.raises(ConfigError, match="3 runs have failed and none has ended"):
        tried._next()

    again = _Sweep(_parse(["sweep.yaml", "--runs=4"]))  # goes on with what failed, as no run of this one has
    again.study = again._open()
    trial = again._next()
    assert again.study.typed(trial) == again.sweep.grid()[0]
    with pytest.raises(ConfigError, match="no 'val/los' was logged"):
        again._end(trial, "not logged", None, "no 'val/los' was logged", 1.0)
    again._end(again._next(), "complete", 0.5, "", 1.0)
    assert [trial.state.name for trial in again.study.trials] == ["FAIL"] * 4 + ["COMPLETE"]
    assert "val/loss 0.5, 1.0 s" in capsys.readouterr().out


# ---- what is chosen


def bowl(params):
    return (params["x"] - 1.0) ** 2 + abs(json.loads(params["y"]) - 0.1) + 0.5 * (params["z"] != "b")


def choose(sweep_study, runs):
    for _ in range(runs):
        trial = sweep_study.ask()
        typed = sweep_study.typed(trial)
        value = bowl({"x": float(typed["x"]), "y": typed["y"], "z": typed["z"]})
        sweep_study.tell(trial, "complete", value, message="")
    return [(sweep_study.typed(trial), trial.value) for trial in sweep_study.trials]


@pytest.mark.usefixtures("quick_storage")
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_choices_depend_on_the_seed_and_not_on_interruptions(method):
    text = BAYES.replace("bayes", method)
    at_once = choose(study(text, "at_once"), 16)
    choose(study(text, "in_parts"), 7)
    killed = study(text, "in_parts").ask()  # its process ends here
    resumed = study(text, "in_parts")
    (trial,) = resumed.interrupted()
    assert trial.number == killed.number == 7
    typed = resumed.typed(trial)
    resumed.tell(trial, "complete", bowl({"x": float(typed["x"]), "y": typed["y"], "z": typed["z"]}), message="")
    assert choose(resumed, 8) == at_once
    assert choose(study(text, "another", seed=1), 16) != at_once


@pytest.mark.usefixtures("quick_storage")
def test_bayes_comes_nearer_than_random():
    results = {name: choose(study(BAYES.replace("bayes", name), name), 60) for name in ("bayes", "random")}
    for points in results.values():
        assert all(-1 <= float(point["x"]) <= 3 and 0.001 <= float(point["y"]) <= 10 for point, _ in points)
        assert {point["z"] for point, _ in points} == {"a", "b", "c"}
    mean = {name: sum(value for _, value in points[20:]) / 40 for name, points in results.items()}
    assert mean["bayes"] < 0.7 * mean["random"]
    assert study(BAYES, "bayes").best().value == min(value for _, value in results["bayes"])


@pytest.mark.usefixtures("quick_storage")
def test_successive_halving_by_hand():
    halving = study(BAYES + "early_terminate: {type: hyperband, min_iter: 2, eta: 2}\n")
    first, second, third = (halving.ask() for _ in range(3))
    # nobody is judged before the second value; then who is not in the better half of those who came so far stops
    assert not halving.should_stop(first, 1, 9.0)
    assert not halving.should_stop(first, 2, 1.0)
    assert not halving.should_stop(second, 1, 9.0)
    assert halving.should_stop(second, 2, 2.0)
    assert not halving.should_stop(third, 1, 9.0)
    assert not halving.should_stop(third, 2, 0.5)
    # the next time comes after twice as many
    assert not halving.should_stop(first, 3, 5.0)
    assert not halving.should_stop(first, 4, 0.9)
    # of a run that was interrupted a value may come twice: the first counts
    assert not halving.should_stop(first, 4, 100.0)
    assert halving.trials[0].intermediate_values == {1: 9.0, 2: 1.0, 3: 5.0, 4: 0.9}


@pytest.mark.usefixtures("quick_storage")
def test_a_target_and_ends_of_runs():
    goal = study(BAYES.replace("{name: val/loss}", "{name: val/loss, target: 0.5}"))
    for outcome, value in (("diverged", None), ("stopped early", None), ("failed", None), ("complete", 0.7)):
        goal.tell(goal.ask(), outcome, value, message="")
    assert [trial.state.name for trial in goal.trials] == ["PRUNED", "PRUNED", "FAIL", "COMPLETE"]
    assert not goal.has_reached_target()
    goal.tell(goal.ask(), "complete", 0.5, message="")
    assert goal.has_reached_target()
    assert goal.best().number == 4


@pytest.mark.usefixtures("quick_storage")
def test_a_folder_keeps_its_sweep():
    study(BAYES)
    with pytest.raises(ValueError, match="study has a sweep with another method and --seed: choose another --name"):
        study(BAYES.replace("bayes", "random"), seed=3)
