"""Checkpoints combined by the command."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import conv2d

from leyden.cli import main
from leyden.cli.combining import find_files
from leyden.data import Digits
from leyden.weights import (
    CheckpointFile,
    add_task_vectors,
    average,
    dare,
    robust_weight_signature,
    task_vector,
)

QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=6",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.logger.WandbLogger=null",
    "--trainer.callbacks.ProgressBar=null",
    "--test_after_fit=false",
]
NETWORKS = {
    "mlp": ["--model.network={class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10}}"],
    "conv": ["--model.network.width=4"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the logs of three short runs of each network, from one start."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for network, options in NETWORKS.items():
            for seed in range(3):
                data = [f"--data.seed={seed}", f"--name={network}-{seed}"]
                assert main(["fit", *QUICK, *options, *data, "--debug"]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def checkpoint(network, seed=0):
    return f"logs/default/{network}-{seed}/checkpoints/best.ckpt"


def combine(*arguments):
    return main(["combine", *arguments, "--debug"])


def states(network):
    return [torch.load(checkpoint(network, seed), weights_only=True)["state_dict"] for seed in range(3)]


def test_average_is_a_checkpoint_of_the_run(here):
    assert combine("--ckpts", checkpoint("mlp", "*"), "--method=average", "--name=a", "--weights", "1", "1", "2") == 0
    path = "logs/combine/a/checkpoints/combined.ckpt"
    result = torch.load(path, weights_only=True)
    expected = states("mlp")
    for name, tensor in result["state_dict"].items():
        exact = (expected[0][name].double() + expected[1][name].double() + 2 * expected[2][name].double()) / 4
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
    provenance = json.loads(result["provenance"])
    assert provenance["method"] == "average"
    assert provenance["coefficients"] == [0.25, 0.25, 0.5]
    assert [ckpt["path"] for ckpt in provenance["ckpts"]] == [checkpoint("mlp", seed) for seed in range(3)]
    assert main(["test", f"--ckpt_path={path}", "--trainer.limit_test_batches=1"]) == 0
    assert "test/accuracy" in Path("logs/combine/a/test/metrics.csv").read_text()


def test_statistics_of_batch_norm_are_measured(here):
    data = ["--data.batch_size=100", "--data.drop_last=false"]
    assert combine("--ckpts", checkpoint("conv", "*"), "--method=average", "--name=a", *data) == 0
    result = torch.load("logs/combine/a/checkpoints/combined.ckpt", weights_only=True)
    assert json.loads(result["provenance"])["batch_norm"] == "measured"
    images = Digits(seed=0).datasets()["train"].tensors["input"].double()
    assert len(images) < len(load_digits().images)
    out = conv2d(images, result["state_dict"]["network.body.0.0.weight"].double(), padding=1)
    # 12 batches of 100 and one of 58, all of one weight: near the mean of all, and exactly that of the batches
    measured = result["state_dict"]["network.body.0.1.running_mean"].double()
    torch.testing.assert_close(measured, out.mean((0, 2, 3)), rtol=0, atol=2e-3)
    assert result["state_dict"]["network.body.0.1.num_batches_tracked"].item() == 13
    averaged = average(states("conv"))["network.body.0.1.running_mean"].double()
    assert (measured - averaged).abs().max() > 1e-3


def test_greedy_soup_is_no_worse_than_its_best(here, capsys):
    arguments = ["--method=greedy-soup", "--metric=val/loss", "--trainer.limit_val_batches=1"]
    assert combine("--ckpts", checkpoint("mlp", "*"), *arguments, "--name=a") == 0
    lines = capsys.readouterr().err.splitlines()
    tried = [float(line.split()[-1]) for line in lines if line.startswith("leyden: val/loss")]
    result = torch.load("logs/combine/a/checkpoints/combined.ckpt", weights_only=True)
    provenance = json.loads(result["provenance"])
    best = provenance["metrics"]["val/loss"]
    assert len(tried) == 5  # each alone, then two that may be added
    assert best <= min(tried[:3]) + 5e-5
    chosen = average([CheckpointFile(path) for path in provenance["chosen"]])
    assert all(torch.equal(tensor, chosen[name]) for name, tensor in result["state_dict"].items())


def test_a_folder_is_in_the_order_of_steps(here):
    run = "logs/default/mlp-0"
    files = find_files([run])
    assert [file.header["global_step"] for file in files] == sorted(file.header["global_step"] for file in files)
    assert files[-1].header["global_step"] == 12
    read = []
    for file in files:
        file.on_read = read.append
    average(files)
    assert sum(read) == sum(file.num_bytes for file in files)  # each tensor once
    for number in (2, 10, 1):
        safetensors.torch.save_file({"w": torch.full((2,), float(number))}, f"step-{number}.safetensors")
    assert [file["w"][0].item() for file in find_files(["step-*.safetensors"])] == [1.0, 2.0, 10.0]
    assert combine("--ckpts", "step-*.safetensors", "--method=ema", "--decay=0.5", "--output=all.safetensors") == 0
    assert safetensors.torch.load_file("all.safetensors")["w"].tolist() == [0.25 * 1 + 0.25 * 2 + 0.5 * 10] * 2


def test_weights_of_the_network_alone(here):
    assert combine("--ckpts", checkpoint("mlp", "*"), "--method=average", "--output=a.safetensors") == 0
    state = safetensors.torch.load_file("a.safetensors")
    assert state.keys() == {name.removeprefix("network.") for name in states("mlp")[0]}
    with safetensors.safe_open("a.safetensors", framework="pt") as file:
        assert file.metadata()["leyden"] == "weights"
        assert json.loads(file.metadata()["provenance"])["method"] == "average"


@pytest.mark.parametrize("method", ["slerp", "task-arithmetic", "ties", "dare", "dare-ties"])
def test_the_other_methods(here, method):
    models = [checkpoint("mlp", 1), checkpoint("mlp", 2)]
    base = [] if method == "slerp" else ["--base", checkpoint("mlp", 0)]
    for name in ("a", "b"):
        assert combine("--ckpts", *models, f"--method={method}", *base, f"--output={name}.ckpt") == 0
    one, two = (torch.load(f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)  # what is dropped is always the same
    _, first, second = states("mlp")
    if method == "task-arithmetic":
        start = states("mlp")[0]
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, first[name] + second[name] - start[name], rtol=1e-5, atol=1e-6)
    else:
        assert all(not torch.equal(one[name], first[name]) for name in one if name.endswith("weight"))


def test_changes_of_one_checkpoint_are_dropped(here, capsys):
    base, model = ("--base", checkpoint("mlp", 0)), ("--ckpts", checkpoint("mlp", 1))
    assert combine(*model, "--method=ties", *base, "--trim_rate=0.9", "--output=small.ckpt") == 0
    start, tuned, _ = states("mlp")
    delta = torch.cat([(tuned[name] - start[name]).flatten() for name in start]).double()
    left = torch.load("small.ckpt", weights_only=True)["state_dict"]
    kept = torch.cat([(left[name] != start[name]).flatten() for name in start])
    assert int(kept.sum()) == pytest.approx(0.1 * len(delta), abs=2)
    assert delta[kept].abs().min() >= delta[~kept].abs().max()

    search = ("--drop_rate=0.99", "--rescale=search", "--metric=val/loss", "--trainer.limit_val_batches=1")
    assert combine(*model, "--method=dare", *base, *search, "--output=found.ckpt") == 0
    losses = [float(line.split()[-1]) for line in capsys.readouterr().err.splitlines() if ": val/loss" in line]
    found = torch.load("found.ckpt", weights_only=True)
    provenance = json.loads(found["provenance"])
    assert len(losses) == 20
    best = [number for number, loss in enumerate(losses) if loss == min(losses)]  # as it is printed
    assert any(provenance["rescale"] == pytest.approx(0.01 * 100 ** (number / 19)) for number in best)
    expected = dare(
        task_vector(tuned, start),
        drop_rate=0.99,
        rescale=provenance["rescale"],
        generator=torch.Generator().manual_seed(0),
    )
    for name, tensor in add_task_vectors(start, [expected]).items():
        assert torch.equal(found["state_dict"][name], tensor)


def test_changes_are_added_to_another_checkpoint(here):
    files = {name: checkpoint("mlp", seed) for seed, name in enumerate(("base", "onto", "ckpts"))}
    options = [f"--{name}={path}" for name, path in files.items()]
    start, clean, robust = states("mlp")
    assert combine(*options, "--method=task-arithmetic", "--scale=0.5", "--output=sum.ckpt") == 0
    result = torch.load("sum.ckpt", weights_only=True)["state_dict"]
    for name, tensor in result.items():
        exact = clean[name].double() + 0.5 * (robust[name].double() - start[name].double())
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)
    assert combine(*options, "--method=rws", "--num_layers=1", "--scale=0.5", "--output=patched.ckpt") == 0
    patched = torch.load("patched.ckpt", weights_only=True)
    keys = ["network.body.0.weight", "network.body.0.bias"]
    assert json.loads(patched["provenance"])["patched"] == keys
    signature = robust_weight_signature(robust, clean, start, keys=keys)
    for name, tensor in patched["state_dict"].items():
        torch.testing.assert_close(tensor, clean[name] + 0.5 * signature[name] if name in keys else clean[name])


WRONG = {
    "--ckpts MLP --base MLP --method rws --num_layers 1": "rws needs onto: the weights of clean training",
    "--ckpts MLP --base MLP --onto MLP --method rws": "rws needs num_layers: how many layers are patched",
    "--ckpts MLP --base MLP --onto MLP --method rws --num_layers 9": "num_layers must lie in 1..3, got 9",
    "--ckpts MLP --base MLP --onto MLP --method ties": "ties takes no onto; it belongs to rws, task-arithmetic",
    "--ckpts MLP --base v.safetensors --onto MLP --method rws --num_layers 1": "is no checkpoint of Lightning, which",
    "--ckpts MLP --base MLP --method dare --rescale search": "rescale: search needs a metric to choose by",
    "--ckpts nowhere/*.ckpt --method average": "there are no checkpoints nowhere/*.ckpt",
    "--ckpts MLP --method average": "there must be at least two checkpoints, got",
    "--ckpts MLP MLP --method average": "is named twice",
    "--ckpts MLP CONV --method average": "the names differ: state dict",
    "--ckpts MLP w.safetensors --method average": "are of different kinds",
    "--ckpts w.safetensors v.safetensors --method average --output x.ckpt": "is no checkpoint of Lightning",
    "--ckpts w.safetensors v.safetensors --method greedy-soup --metric val/loss": "lies in no run folder",
    "--ckpts MLP CONV --method average --decay 0.5": "average takes no decay; it belongs to ema",
    "--ckpts MLP CONV --method ties": "ties needs base",
    "--ckpts MLP CONV --method greedy-soup": "greedy-soup needs a metric",
    "--ckpts MLP CONV --method average --data digits": "name a metric too",
    "--ckpts MLP CONV --method average --metric loss": "metric must begin with val/ or test/, got 'loss'",
    "--ckpts logs/default/mlp-*/checkpoints/best.ckpt --method slerp": "slerp combines two checkpoints, got 3",
    "--ckpts logs/default/mlp-*/checkpoints/best.ckpt --method average --weights 1": "weights must be one per",
    "--ckpts logs/default/mlp-*/checkpoints/best.ckpt --method average --metric val/f1": "it logged no 'val/f1'",
    "--ckpts logs/default/mlp-*/checkpoints/best.ckpt --method ema --output x.bin": "a .ckpt or .safetensors file",
    "--ckpts logs/default/mlp-*/checkpoints/best.ckpt --method ema --decay 3": "decay must lie in [0, 1], got 3.0",
    "--ckpts logs/default/mlp-*/checkpoints/best.ckpt --method ema --output w.safetensors": "is there already",
    "--ckpts broken.ckpt MLP --method average": "broken.ckpt is damaged",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_wrong_calls(here, capsys, text, message):
    for name in ("w", "v"):
        safetensors.torch.save_file({"w": torch.ones(2)}, f"{name}.safetensors")
    Path("broken.ckpt").write_bytes(Path(checkpoint("mlp")).read_bytes()[:-300])
    text = text.replace("MLP", checkpoint("mlp")).replace("CONV", checkpoint("conv"))
    assert main(["combine", *text.split()]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leyden: error")]
    assert len(error) == 1
    assert message in error[0]
    assert not Path("logs/combine").exists()
