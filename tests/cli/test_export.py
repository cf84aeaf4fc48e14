import json
import subprocess
import sys
import warnings

import onnxruntime
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils import parametrize

from leyden.cli import main
from leyden.cli.export_formats import FORMATS, write_checked
from leyden.core import Network
from leyden.data import Digits
from leyden.models import GPT, ConvNet, TransformersNetwork, ViT, load_exported

# A parametrization whose value can be computed by hand, put on by a callback as methods do it.
PARTS = """
import torch
from torch import nn
from torch.nn.utils import parametrize
from leyden.core import MethodCallback

class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2

class HalveHead(MethodCallback):
    def build(self, method):
        parametrize.register_parametrization(method.network.head, "weight", Halved())

class WiderHead(MethodCallback):
    def build(self, method):
        method.network.head = nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 10))
"""


def fit(name, *more):
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1"]
    quick += ["-c", "logger/csv", "-c", "trainer/cpu", "--model.network.width=2", "--test_after_fit=false"]
    assert main(["fit", *quick, "--name", name, *more]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder above the ``logs`` of a run ``default/halved`` whose head is parametrized."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "export_parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        fit("halved", "--trainer.callbacks+=export_parts.HalveHead")
        yield folder


@pytest.fixture
def expected(run):
    """The network of the checkpoint, put together by hand, and the first rows of the test set."""
    checkpoint = torch.load(run / "logs/default/halved/checkpoints/best.ckpt", weights_only=True)
    state = {key[8:]: value for key, value in checkpoint["state_dict"].items() if key.startswith("network.")}
    current = checkpoint["current_model_state"]["network.head.bias"]
    assert not torch.equal(state["head.bias"], current)  # the average is another than the weights of training
    state["head.weight"] = state.pop("head.parametrizations.weight.original") / 2
    network = ConvNet(width=2)
    network.load_state_dict(state)
    images = Digits().dataset("test").__getitems__(list(range(5)))["input"]
    return network.eval(), images


def read_safetensors(path, x):
    return load_exported(path)(x)


def read_torchscript(path, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch 2.13
        return torch.jit.load(path)(x)


def read_pt2(path, x):
    return torch.export.load(path).module()(x)


def read_onnx(path, x):
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize(
    ("name", "suffix", "read"),
    [
        ("safetensors", "safetensors", read_safetensors),
        ("torchscript", "ts", read_torchscript),
        ("pt2", "pt2", read_pt2),
        ("onnx", "onnx", read_onnx),
    ],
)
def test_same_outputs_in_any_batch_size(run, expected, monkeypatch, capsys, name, suffix, read):
    monkeypatch.chdir(run)
    assert main(["export", "logs/default/halved", "--to", name, "--debug"]) == 0
    file = run / f"logs/default/halved/export/best.{suffix}"
    assert f"leyden: {file.relative_to(run)}: outputs differ by at most " in capsys.readouterr().out
    network, images = expected
    for x in (images, images[:1]):
        torch.testing.assert_close(read(str(file), x), network(x), rtol=1e-5, atol=1e-5)


def test_safetensors_say_what_they_are(run, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(run)
    path = tmp_path / "new" / "x.safetensors"
    checkpoint = "logs/default/halved/checkpoints/last.ckpt"
    assert main(["export", checkpoint, "--to=safetensors", f"--output={path}", "--data.eval_batch_size=4"]) == 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["network"])["init_args"]["width"] == 2
    assert json.loads(metadata["config"])["trainer"]["callbacks"][-1]["class_path"] == "export_parts.HalveHead"
    assert metadata["class"] == "leyden.models.convnet.ConvNet"
    assert json.loads(metadata["versions"])["torch"] == torch.__version__
    assert "logs" not in str(metadata)
    assert safetensors.torch.load_file(path).keys() == expected[0].state_dict().keys()  # no parametrization


def test_bad_input(run, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(run)

    def error(*arguments, code=1):
        assert main(["export", *arguments]) == code
        return capsys.readouterr().err.splitlines()[-1]

    hint = "; the newest run is logs/default/"
    assert f"no-run is no checkpoint and no run folder with checkpoints{hint}" in error("no-run", "--to=pt2")
    assert "'-x' is no option" in error("logs/default/halved", "--to=pt2", "-x", code=2)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("a.ckpt", "b.ckpt", "last.ckpt"):
        (folder / name).touch()
    assert "has several checkpoints, name one: " in error(str(tmp_path), "--to=pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    needed = 'leyden: error: onnxscript is not installed: pip install "leyden[onnx]"'
    assert error("logs/default/halved", "--to=onnx", f"--output={tmp_path}/x.onnx") == needed
    assert not list(tmp_path.glob("*x.onnx*"))


def test_layers_of_a_callback_do_not_fit_into_safetensors(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    fit("wider", "--trainer.callbacks+=export_parts.WiderHead")
    assert main(["export", "logs/default/wider", "--to=safetensors"]) == 1
    assert (
        "a callback changed layers, or took weights apart that the config ties: pt2 and onnx hold"
        in capsys.readouterr().err
    )
    assert not list((run / "logs/default/wider").rglob("*.safetensors*"))
    assert main(["export", "logs/default/wider", "--to=pt2"]) == 0


def networks():
    torch.manual_seed(0)
    yield ViT(8, 4, 5, in_channels=1, dim=16, depth=1, num_heads=2), torch.randn(4, 1, 8, 8)
    yield GPT(11, 8, dim=16, depth=1, num_heads=2), torch.randint(11, (4, 8))
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = TransformersNetwork("bert", "sequence_classification", num_classes=3, pad_token_id=0, **sizes)
    yield bert, torch.randint(1, 30, (4, 8))


@pytest.mark.parametrize("form", sorted(FORMATS.keys() - {"safetensors"}))
def test_kinds_of_networks(form, tmp_path):
    for network, x in networks():
        assert write_checked(FORMATS[form], network.eval(), [x, x[:1], x[:3]], {"a": "b"}, tmp_path / "x") < 1e-5


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_a_parametrized_weight_that_is_tied(tmp_path):
    def network():
        torch.manual_seed(0)
        network = GPT(11, 8, dim=16, depth=1, num_heads=2).eval()
        plain = network(tokens)
        parametrize.register_parametrization(network.head, "weight", Half())
        torch.testing.assert_close(network(tokens), plain / 2)
        return network

    tokens = torch.randint(11, (4, 8))
    config = {"vocab_size": 11, "context": 8, "dim": 16, "depth": 1, "num_heads": 2}
    tied, untied = (
        {"class_path": "leyden.models.GPT", "init_args": {**config, "tie_weights": t}} for t in (True, False)
    )
    path = tmp_path / "x"
    with torch.no_grad():
        assert write_checked(FORMATS["pt2"], network(), [tokens], {}, path) < 1e-6
        with pytest.raises(ValueError, match="gives other outputs.* took weights apart that the config ties"):
            write_checked(FORMATS["safetensors"], network(), [tokens], {"network": json.dumps(tied)}, path)
        assert write_checked(FORMATS["safetensors"], network(), [tokens], {"network": json.dumps(untied)}, path) == 0.0


class SignOfTheBatch(Network):
    """Takes one of two ways, by the numbers that come in: what a trace cannot hold."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def features(self, x):
        return x if bool(x.sum() > 0) else -x


def test_other_outputs_are_not_written(tmp_path):
    path = tmp_path / "x.ts"
    path.write_bytes(b"before")
    x = torch.ones(2, 2)
    with pytest.raises(ValueError, match="gives other outputs, by up to .*: it was not written"):
        write_checked(FORMATS["torchscript"], SignOfTheBatch().eval(), [x, -x], {}, path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()


class Rounding(SignOfTheBatch):
    """Calls Python from inside, which no format but safetensors holds."""

    def features(self, x):
        return Rounded.apply(x)


def test_what_a_format_cannot_hold_is_said_in_one_line(tmp_path):
    x = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"cannot hold a Rounding .*'Rounded'.*\(--to safetensors holds") as caught:
        write_checked(FORMATS["torchscript"], Rounding().eval(), [x], {}, tmp_path / "x.ts")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_load_exported_bad_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_exported(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not say which network its weights are of"):
        load_exported(path)
    description = {"class_path": "leyden.models.MLP", "init_args": {"in_features": 2, "num_outputs": 1, "hidden": [3]}}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"network": json.dumps(description)})
    with pytest.raises(ValueError, match="do not fit the MLP"):
        load_exported(path)


def test_help_needs_no_torch():
    code = "import sys; from leyden.cli import main\ntry: main(['export', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'lightning'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
