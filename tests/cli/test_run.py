"""Runs of stages through the command."""

import fcntl
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from leyden.cli import main, stage_task

QUICK = [
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "trainer.logger.WandbLogger=null",
    "trainer.callbacks.ProgressBar=null",
]
CHAIN = """\
set:
  model.network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [4]}}
stages:
  first:
    gives: [weights, val/loss]
  second:
    set: {trainer.callbacks+: leyden.callbacks.InitialWeights, model.optimizer.lr: 0.001}
    takes: {trainer.callbacks.InitialWeights.weights: first.weights}
    gives: [test/accuracy]
  third: {}
"""
PARTS = """\
from pathlib import Path
import safetensors.torch
from leyden.core.replace_file import replace_file
from leyden.weights import pack_weights

def mean(folder: Path, weights: list[str], scale: float = 1.0):
    states = [safetensors.torch.load_file(path) for path in weights]
    state = {name: scale * sum(state[name] for state in states) / len(states) for name in states[0]}
    with replace_file(folder / "mean.safetensors") as file:
        file.write(pack_weights(state))
    return {"weights": folder / "mean.safetensors", "parts": len(states)}
"""
MEAN = """\
set:
  model.network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [4]}}
stages:
  experts:
    members: 3
    gives: [weights]
  mean:
    run: call
    function: stage_parts.mean
    takes: {weights: experts.weights}
    gives: [weights, parts]
  score:
    run: test
    set: {trainer.callbacks+: leyden.callbacks.InitialWeights}
    takes: {trainer.callbacks.InitialWeights.weights: mean.weights}
    gives: [test/loss]
"""


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Labels of the stages that ran since it was asked last."""
    labels = []
    run_task = stage_task.run_task

    def noted(task):
        labels.append(task.folder.relative_to("logs/some/a").as_posix())
        return run_task(task)

    monkeypatch.setattr(stage_task, "run_task", noted)
    monkeypatch.chdir(tmp_path)

    def since():
        result = labels.copy()
        labels.clear()
        return result

    return since


def start(text, *arguments, settings=QUICK):
    Path("some.yaml").write_text(text)
    return main(["run", "some.yaml", "--name=a", *arguments, "--set", *settings])


def records():
    return json.loads(Path("logs/some/a/stages.json").read_text())["stages"]


def resume(*arguments):
    return main(["run", *arguments, "--resume=logs/some/a"])


def test_only_what_changed_runs_again(ran, capsys):
    assert start(CHAIN) == 0
    assert ran() == ["first", "second", "third"]
    out = capsys.readouterr().out
    assert f"test/accuracy {records()['second']['gives']['test/accuracy']:.4f}" in out
    assert Path("logs/some/a/second/metrics.csv").is_file()

    assert resume() == 0
    assert ran() == []
    assert start(CHAIN) == 1
    assert (
        "logs/some/a has a run already; continue it with 'leyden run --resume logs/some/a'" in capsys.readouterr().err
    )

    Path("some.yaml").write_text(CHAIN.replace("0.001", "0.002"))
    assert resume("some.yaml") == 0
    assert ran() == ["second"]
    assert resume() == 0  # the new file is the run's
    assert ran() == []

    # the weights of the first are the same again, so that the second needs nothing
    Path("logs/some/a/first/weights.safetensors").unlink()
    assert resume() == 0
    assert ran() == ["first"]

    changed = CHAIN.replace("first:\n", "first:\n    set: {model.optimizer.lr: 0.1}\n")
    Path("some.yaml").write_text(changed.replace("0.001", "0.002"))
    assert resume("some.yaml") == 0
    assert ran() == ["first", "second"]

    assert resume("--from=second") == 0
    assert ran() == ["second", "third"]
    assert resume("--from=secnd") == 1
    assert "--from: there is no stage 'secnd'" in capsys.readouterr().err
    assert resume("--set", "trainer.max_epochs=2") == 0
    assert ran() == ["first", "second", "third"]


def test_second_starts_from_the_weights_of_the_first(ran):
    frozen = CHAIN.replace("0.001", "0.0").replace(
        "model.optimizer.lr: 0.0", "model.optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.0}}"
    )
    assert start(frozen) == 0
    first, second = (
        torch.load(Path("logs/some/a", stage, "checkpoints/best.ckpt"), weights_only=True)["state_dict"]
        for stage in ("first", "second")
    )
    given = safetensors.torch.load_file("logs/some/a/first/weights.safetensors")
    for name, tensor in given.items():
        assert torch.equal(first[f"network.{name}"], tensor)
        assert torch.equal(second[f"network.{name}"], tensor)


def test_members_a_call_and_an_evaluation(ran, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("stage_parts.py").write_text(PARTS)
    assert start(MEAN) == 0
    assert ran() == ["experts/member-0", "experts/member-1", "experts/member-2", "mean", "score"]
    assert records()["mean"]["gives"]["parts"] == 3.0
    experts = [
        safetensors.torch.load_file(f"logs/some/a/experts/member-{member}/weights.safetensors") for member in range(3)
    ]
    assert not torch.equal(experts[0]["head.weight"], experts[1]["head.weight"])
    mean = safetensors.torch.load_file("logs/some/a/mean/mean.safetensors")
    assert torch.equal(mean["head.bias"], sum(expert["head.bias"] for expert in experts) / 3)
    assert records()["score"]["metrics"].keys() == {"test/loss", "test/accuracy"}

    Path("some.yaml").write_text(MEAN.replace("weights: experts.weights", "weights: experts.weights, scale: round"))
    assert resume("some.yaml") == 1
    assert "mean takes its round for scale, but has no rounds" in capsys.readouterr().err
    changed = MEAN.replace("gives: [weights, parts]", "set: {scale: 2.0}\n    gives: [weights, parts]")
    Path("some.yaml").write_text(changed.replace("members: 3", "members: 2"))
    assert resume("some.yaml") == 0
    assert ran() == ["mean", "score"]
    Path("some.yaml").write_text(MEAN.replace("[weights, parts]", "[weights, extra]"))
    assert resume("some.yaml") == 1
    assert "mean: stage_parts.mean gave no 'extra', only weights, parts" in capsys.readouterr().err


def test_members_in_processes_are_the_same(ran, tmp_path):
    text = MEAN[: MEAN.index("  mean:")]
    assert start(text) == 0
    Path("logs/some/a").rename("logs/some/one")
    assert start(text, "--jobs=2") == 0
    for member in range(3):
        path = f"experts/member-{member}/weights.safetensors"
        assert Path("logs/some/a", path).read_bytes() == Path("logs/some/one", path).read_bytes()
    assert "Trainer.fit" in Path("logs/some/a/experts/member-1/output.log").read_text()
    assert ran()[3:] == []  # not in this process


@pytest.mark.parametrize(("condition", "rounds"), [("< 1000", 1), ("< 0", 3)])
def test_rounds_until(ran, capsys, condition, rounds):
    loop = "rounds: 3\n    until: again.val/loss " + condition + "\n    by_round: {model.optimizer.lr: [0.1, 0.2, 0.3]}"
    text = CHAIN[: CHAIN.index("  second:")].replace("first:", f"again:\n    {loop}")
    follower = "  after:\n    set: {trainer.callbacks+: leyden.callbacks.InitialWeights}\n"
    follower += "    takes: {trainer.callbacks.InitialWeights.weights: again.weights, seed_everything: again.number}\n"
    assert start(text + follower.replace(", seed_everything: again.number", "")) == 0
    assert ran() == [*(f"again/round-{number}" for number in range(rounds)), "after"]
    shown = [Path(f"logs/some/a/again/round-{number}/config.yaml").read_text() for number in range(rounds)]
    assert ["lr: 0.1" in shown[0], "lr: 0.3" in shown[-1]] == [True, rounds == 3]
    assert f"again/round-{rounds - 1}/weights" in Path("logs/some/a/after/config.yaml").read_text()
    assert resume() == 0
    assert ran() == []


def test_stages_are_one_wandb_group(ran, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = [setting for setting in QUICK if "Wandb" not in setting]
    assert start(CHAIN[: CHAIN.index("  second:")], settings=settings) == 0
    config = Path("logs/some/a/first/config.yaml").read_text()
    assert "group: some/a" in config
    assert f"id: {records()['first']['id']}" in config.replace("'", "")  # YAML quotes what looks like a number
    assert "name: some/a/first" in config


def test_error_in_a_stage_is_one_line(ran, capsys):
    assert start(CHAIN.replace("third: {}", "third: {set: {model.network.num_outputs: 7}}")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "leyden: error: third: the network has 7 outputs, but the data have 10 classes: set its number of outputs to 10"
    )
    assert records()["third"]["state"] == "running"
    assert main(["run", "--resume=nowhere"]) == 1
    assert "nowhere is no folder of a run of stages, it has no stages.json" in capsys.readouterr().err
    for wrong in ([], ["some.yaml", "--jobs=0"], ["--name=a", "--resume=b"]):
        with pytest.raises(SystemExit, match="2"):
            main(["run", *wrong])


def test_a_head_grows_with_the_rounds(ran):
    text = """\
set:
  data: {class_path: leyden.data.DigitTasks}
  model.network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 2, hidden: [4]}}
stages:
  stream:
    rounds: 3
    stages:
      learn:
        set: {trainer.callbacks+: {class_path: leyden.callbacks.InitialWeights, init_args: {grow_head: true}}}
        takes: {data.task: round, trainer.callbacks.InitialWeights.weights: before.learn.weights}
        gives: [weights, checkpoint]
      evaluate:
        run: evaluate
        function: leyden.analysis.domain_accuracy
        takes: {ckpt_path: learn.checkpoint}
        gives: [accuracy/mean]
"""
    assert start(text) == 0
    heads = [
        safetensors.torch.load_file(f"logs/some/a/stream/round-{number}/learn/weights.safetensors")["head.bias"]
        for number in range(3)
    ]
    assert [len(head) for head in heads] == [2, 4, 6]
    last = records()["stream/round-2/evaluate"]
    assert last["metrics"].keys() == {"accuracy/0", "accuracy/1", "accuracy/2", "accuracy/mean"}
    assert last["gives"]["accuracy/mean"] == pytest.approx(sum(last["metrics"][f"accuracy/{t}"] for t in range(3)) / 3)


def test_one_process_at_a_time(ran, capsys):
    assert start(CHAIN[: CHAIN.index("  second:")]) == 0
    with open("logs/some/a/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert resume() == 1
    assert "another process is running the stages in logs/some/a" in capsys.readouterr().err
    assert resume() == 0


SOUP = """\
set:
  model.network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [4]}}
stages:
  experts:
    members: 2
    gives: [checkpoint]
  soup:
    run: combine
    set: {method: average, metric: val/loss}
    takes: {ckpts: experts.checkpoint}
    gives: [checkpoint, weights, network, val/loss]
  score:
    run: test
    takes: {ckpt_path: soup.checkpoint}
    gives: [test/loss]
  pruned:
    run: evaluate
    function: stage_evaluators.without_small
    set: {share: 0.5}
    takes: {ckpt_path: soup.checkpoint}
    gives: [test/loss, zeros]
  student:
    set: {trainer.callbacks+: leyden.callbacks.Distillation}
    takes: {trainer.callbacks.Distillation.teacher: soup.network}
"""
EVALUATORS = """\
import torch
from torch.nn.functional import cross_entropy

def without_small(method, data, share):
    head = method.network.head.weight
    limit = head.abs().flatten().kthvalue(int(share * head.numel())).values
    head[head.abs() <= limit] = 0.0
    batch = next(iter(data.test_dataloader()))
    loss = cross_entropy(method(batch["input"]), batch["target"])
    return {"test/loss": loss, "zeros": (head == 0).sum()}
"""


def test_a_combination_and_an_evaluation_that_trains_nothing(ran, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("stage_evaluators.py").write_text(EVALUATORS)
    assert start(SOUP) == 0
    assert ran() == ["experts/member-0", "experts/member-1", "soup", "score", "pruned", "student"]
    experts = [
        torch.load(f"logs/some/a/experts/member-{member}/checkpoints/best.ckpt", weights_only=True)["state_dict"]
        for member in range(2)
    ]
    soup = torch.load("logs/some/a/soup/checkpoints/combined.ckpt", weights_only=True)["state_dict"]
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (experts[0][name] + experts[1][name]) / 2)
    weights = safetensors.torch.load_file("logs/some/a/soup/weights.safetensors")
    assert torch.equal(weights["head.bias"], soup["network.head.bias"])
    page = Path("logs/some/a/report.html").read_text()
    for label, record in records().items():
        assert f"<th>{label}</th>" in page
        for name, value in record["gives"].items():
            assert name in page if isinstance(value, str) else f"{name} {value:.4f}" in page
    gives = {name: record["gives"] for name, record in records().items()}
    assert gives["pruned"]["zeros"] == 20.0  # of 4 x 10
    assert gives["pruned"]["test/loss"] != gives["score"]["test/loss"]
    assert gives["soup"]["val/loss"] > 0
    capped = Path("logs/some/a/soup/config.yaml").read_text()
    assert main(["test", "--ckpt_path=logs/some/a/soup/checkpoints/combined.ckpt"]) == 0
    assert Path("logs/some/a/soup/config.yaml").read_text() == capped

    assert resume() == 0
    assert ran() == []
    Path("some.yaml").write_text(SOUP.replace("method: average", "method: ema, decay: 0.5"))
    assert resume("some.yaml") == 0
    # a checkpoint says how it was made, so that it is another one; the network has the same weights
    assert ran() == ["soup", "score", "pruned"]
    Path("some.yaml").write_text(SOUP.replace("method: average", "method: ema, decay: 0.25").replace("0.5}", "0.25}"))
    assert resume("some.yaml") == 0
    assert ran() == ["soup", "score", "pruned", "student"]


CURATED = """\
set:
  data: {class_path: leyden.data.CuratedData, init_args: {batch_size: 10}}
  data.source: {class_path: leyden.data.Digits, init_args: {num_train: 60}}
  model.network: {class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [4]}}
stages:
  scorers:
    members: 2
    gives: [checkpoint]
  scores:
    run: predict
    members: 2
    takes: {ckpt_path: member.scorers.checkpoint}
    gives: [dataset]
  curate:
    run: curate
    set: {curation: {class_path: leyden.curation.PruneAndCombine, init_args: {images_per_class: 2, factor: 1}}}
    takes: {curation.predictions: scores.dataset}
    gives: [dataset]
  train:
    takes: {data.dataset: curate.dataset}
    gives: [test/accuracy]
"""


def test_a_curation(ran):
    assert start(CURATED) == 0
    made = safetensors.torch.load_file("logs/some/a/curate/dataset.safetensors")
    assert made["input"].shape == (20, 1, 8, 8)
    assert records()["train"]["gives"]["test/accuracy"] >= 0
    assert resume() == 0
    assert ran()[-1] == "train"
    assert ran() == []
