"""What W&B gets: runs are made offline and read back with W&B's own reader of their files."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from jsonargparse import Namespace
from wandb.util import get_core_path

from leyden.cli import main
from leyden.cli.comparison import Arm, make_report
from leyden.cli.comparison_plots import plot_curves, plot_differences
from leyden.cli.comparison_wandb import log_comparison
from leyden.cli.wandb_runs import named_by_class, prepare_wandb

SMALL = [
    "--name=run",
    "-c",
    "trainer/cpu",
    "-c",
    "trainer/quick",
    "--model.network.width=4",
    "--trainer.callbacks.ProgressBar=null",
    "--trainer.enable_progress_bar=false",
]
RUN = Path("logs/default/run")


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_QUIET"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever a run sets
        monkeypatch.delenv(name)


def fit(*arguments):
    assert main(["fit", *arguments]) == 0


def runs(folder=RUN):
    """Files of the W&B runs in a folder, in the order in which they were made."""
    return sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def records(path, kind):
    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-run-file", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [record[kind] for record in map(json.loads, lines) if record["type"] == kind]


def summary(path):
    values = {}
    for record in records(path, "summary"):
        values |= record["update"]
    return values


def history(path, name):
    rows = [record["item"] for record in records(path, "history")]
    return [(row["trainer/global_step"], row[name]) for row in rows if name in row]


def logged(name):
    with open(RUN / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


def test_a_run_and_its_continuation_are_one_run():
    fit(*SMALL)
    fit(f"--resume={RUN}", "--trainer.max_epochs=2")
    first, second = runs()
    settings = yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["logger"][1]["init_args"]

    (run,), (continued,) = records(first, "run"), records(second, "run")
    assert run["run_id"] == continued["run_id"] == settings["id"]
    assert re.fullmatch("r[0-9a-f]{8}", run["run_id"])
    assert run["display_name"] == "default/run"
    assert (run["resume"], continued["resume"]) == (True, True)
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["wandb_id"] == run["run_id"]

    for name in ("val/loss", "train/loss"):
        steps, values = zip(*history(first, name), *history(second, name), strict=True)
        assert (list(steps), pytest.approx(list(values))) == tuple(map(list, zip(*logged(name), strict=True)))
    assert not Path("wandb").exists()

    sync = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(first.parent), str(second.parent)]
    assert "Would sync 2 run(s)" in subprocess.run(sync, capture_output=True, text=True, check=True).stderr


def test_config_summary_and_artifact():
    fit(*SMALL, "--trainer.max_epochs=3", "--model.optimizer.lr=0.1")
    (path,) = runs()

    (config,) = records(path, "config")
    config = config["update"]
    assert config["model"]["network"]["width"] == 4
    assert config["model"]["optimizer"] == config["model"]["optimizer"] | {"class_path": "torch.optim.AdamW", "lr": 0.1}
    assert config["trainer"]["callbacks"]["EMA"]["decay"] == 0.99
    assert "logger" not in config["trainer"]

    losses, accuracies = ([value for _, value in logged(f"val/{name}")] for name in ("loss", "accuracy"))
    assert len(losses) == 3
    kept = summary(path)
    assert kept["val/loss"] == pytest.approx({"min": min(losses), "last": losses[-1]})
    assert kept["val/accuracy"] == pytest.approx({"max": max(accuracies), "last": accuracies[-1]})
    assert kept["test/accuracy"] == pytest.approx(logged("test/accuracy")[0][1])
    steps = {metric.get("name"): metric.get("step_metric") for metric in records(path, "metric")}
    assert steps["val/loss"] == steps[None] == "trainer/global_step"  # None: the rule for all others

    (artifact,) = records(path, "artifact")  # of three checkpoints
    assert sorted(artifact["aliases"]) == ["best", "latest"]
    assert artifact["type"] == "model"
    (file,) = artifact["manifest"]["contents"]
    best = (RUN / "checkpoints/best.ckpt").resolve()
    assert file["local_path"] == str(best)  # no copy, which W&B would keep in the home folder
    assert int(file["size"]) == best.stat().st_size
    assert json.loads(artifact["metadata"])["score"] == pytest.approx(min(losses))


def test_group_kind_and_tags_of_a_run():
    options = {"group": "ablation", "job_type": "method", "tags": "[lamb, small]"}
    fit(*SMALL, *(f"--trainer.logger.WandbLogger.{key}={value}" for key, value in options.items()))
    (run,) = records(runs()[0], "run")
    assert (run["run_group"], run["job_type"], run["tags"]) == ("ablation", "method", ["lamb", "small"])


def test_an_agent_of_a_sweep_names_the_run(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    fit(*SMALL)
    assert records(runs()[0], "run")[0]["run_id"] == "fromagent"


def test_keys_are_those_of_the_command_line():
    ema = {"class_path": "leyden.callbacks.EMA", "init_args": {"decay": 0.9}}
    config = {"trainer": {"callbacks": [ema, ema, {"class_path": "a.B"}], "devices": [0, 1]}, "model": None}
    assert named_by_class(config) == {
        "trainer": {
            "callbacks": {
                "EMA": {"class_path": "leyden.callbacks.EMA", "decay": 0.9},
                "EMA_2": {"class_path": "leyden.callbacks.EMA", "decay": 0.9},
                "B": {"class_path": "a.B"},
            },
            "devices": [0, 1],
        },
        "model": None,
    }


@pytest.mark.parametrize(
    ("mode", "key", "entry", "expected"),
    [
        (None, None, "", "offline"),
        ("dryrun", "secret", "", "offline"),
        ("disabled", None, "", "disabled"),
        (None, "secret", "", None),
        (None, None, "machine api.wandb.ai login user password secret", None),
        ("online", None, "", "online"),
    ],
)
def test_offline_unless_logged_in_or_told(mode, key, entry, expected, monkeypatch, tmp_path):
    (tmp_path / "nobody").write_text(entry)
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value:
            monkeypatch.setenv(name, value)
    init_args = Namespace(name=None, mode=None, save_dir="logs")
    prepare_wandb(init_args, "default/run")
    assert (init_args.name, init_args.mode) == ("default/run", expected)
    told = Namespace(name="mine", mode="online", save_dir="logs")
    prepare_wandb(told, "default/run")
    assert (told.name, told.mode) == ("mine", "online")


# ---- comparisons


def comparison(*seeds):
    arms = []
    for name, gain in (("supervised/plain", 0.0), ("family/better", 0.1)):
        folder = Path("runs", name)
        results = {}
        for seed in seeds:
            (folder / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
            log = f"step,train/loss,val/accuracy\n3,0.7,\n3,,{0.5 + gain}\n7,0.6,\n7,,{0.4 + gain}\n"
            (folder / f"seed-{seed}" / "metrics.csv").write_text(log)
            numbers = {"seconds": 2.0, "cpu_seconds": 1.0, "memory": 10.0, "parameters": 5}
            facts = {"accelerator": "cpu", "threads": 1, "versions": {"torch": "2"}}
            results[seed] = {"seed": seed, "metrics": {"test/accuracy": 0.5 + gain + 0.01 * seed}} | numbers | facts
        resolved = {"trainer": {"callbacks": [{"class_path": "leyden.callbacks.EMA", "init_args": {"decay": gain}}]}}
        arms.append(Arm(name, resolved, name, name, folder, results))
    report = make_report(arms, "test/accuracy", "max", seeds=len(seeds), jobs=1, settings=[])
    folder = Path("logs/compare/tried")
    plot_curves(folder / "curves.png", report, arms)
    plot_differences(folder / "differences.png", report)
    return log_comparison(folder, "mine", report, arms)


def test_a_comparison_is_a_group():
    assert comparison(0, 1) == 5
    found = {}
    for path in runs("logs/compare/tried"):
        (run,) = records(path, "run")
        assert (run["project"], run["run_group"]) == ("mine", "compare/tried")
        found[run["display_name"]] = (run["job_type"], run["tags"], path)
    assert found.keys() == {
        *(f"{name}/seed-{seed}" for name in ("supervised/plain", "family/better") for seed in (0, 1)),
        "compare/tried/tried",
    }
    assert found["supervised/plain/seed-1"][:2] == ("baseline", ["supervised/plain"])
    kind, tags, path = found["family/better/seed-0"]
    assert (kind, tags) == ("method", ["family/better"])
    assert history(path, "val/accuracy") == [(3, 0.6), (7, 0.5)]
    assert summary(path)["val/accuracy"] == {"max": 0.6, "last": 0.5}
    assert summary(path)["memory"] == 10.0
    (config,) = records(path, "config")
    assert config["update"]["trainer"]["callbacks"]["EMA"]["decay"] == 0.1
    assert config["update"]["seed_everything"] == 0
    kind, tags, path = found["compare/tried/tried"]
    assert (kind, tags) == ("report", ["supervised/plain", "family/better"])
    pictures = summary(path)
    assert (pictures["curves.format"], pictures["differences.format"]) == ("png", "png")

    assert comparison(0, 1) == 0  # nothing new
    assert comparison(0, 1, 2) == 3  # a seed of both, and the report


def test_no_run_is_left_open():
    fit(*SMALL)
    assert wandb.run is None
