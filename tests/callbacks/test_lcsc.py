import json

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import EMA, LCSC, ExactResume, LastCheckpoint
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.weights import CheckpointFile, combine, ema_coefficients


class KilledError(Exception):
    pass


def fit(folder, lcsc, *callbacks, network=lambda: MLP(64, 10, (8,)), resume=False, epochs=3, devices=1, **options):
    torch.manual_seed(0)
    method = Classification(network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[ExactResume(), *callbacks, lcsc, LastCheckpoint()],
        **options,
    )
    data = Digits(batch_size=16, num_train=64, eval_batch_size=64, seed=0)
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(method, data, ckpt_path=last if resume else None, weights_only=True)
    return trainer


def found(folder):
    return torch.load(folder / "checkpoints" / "lcsc.ckpt", weights_only=True)


def validate(trainer, state=None):
    if state is not None:
        trainer.lightning_module.load_state_dict(state)
    other = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    [values] = other.validate(trainer.lightning_module, trainer.datamodule, verbose=False)
    return values["val/loss"]


def test_leaves_the_best_combination_in_the_module(tmp_path):
    trainer = fit(tmp_path, LCSC(2, 4, iterations=60, parents=5))
    checkpoint = found(tmp_path)
    known = json.loads(checkpoint["provenance"])
    files = sorted((tmp_path / "lcsc").glob("*.safetensors"))
    assert known["steps"] == [6, 8, 10, 12]
    assert [int(file.stem.partition("=")[2]) for file in files] == known["steps"]
    assert sum(known["coefficients"]) == pytest.approx(1.0)
    files = [CheckpointFile(file) for file in files]
    expected = combine(files, known["coefficients"])
    weights = trainer.lightning_module.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(checkpoint["state_dict"][name], tensor) for name, tensor in expected.items())
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(files[-1][name], tensor) for name, tensor in last.items())

    assert validate(trainer) == pytest.approx(known["lcsc/combined"], rel=1e-5)
    assert validate(trainer, last) == pytest.approx(known["lcsc/last"], rel=1e-5)
    averages = [validate(trainer, combine(files, ema_coefficients(4, d))) for d in (0.0, 0.5, 0.9, 0.95, 0.99)]
    assert min(averages) == pytest.approx(known["lcsc/best_ema"], rel=1e-5)
    assert known["lcsc/combined"] < known["lcsc/best_ema"]


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_killed_search_goes_on_to_the_same_bits(tmp_path, monkeypatch, cut):
    def network():
        return ConvNet(1, 10, width=2, dropout=0.2)

    fit(tmp_path / "whole", LCSC(3, 4, iterations=20), network=network)
    evaluate, calls = LCSC._evaluate, []

    def killing(self, trainer, method):
        if len(calls) == cut:
            raise KilledError
        calls.append(1)
        return evaluate(self, trainer, method)

    with monkeypatch.context() as patch:
        patch.setattr(LCSC, "_evaluate", killing)
        with pytest.raises(KilledError):
            fit(tmp_path / "killed", LCSC(3, 4, iterations=20), network=network)
    assert not (tmp_path / "killed" / "checkpoints" / "lcsc.ckpt").exists()
    calls.clear()
    monkeypatch.setattr(LCSC, "_evaluate", lambda *call: (calls.append(1), evaluate(*call))[1])
    fit(tmp_path / "killed", LCSC(3, 4, iterations=20), network=network, resume=True)
    assert len(calls) == 25 - cut
    one, other = found(tmp_path / "whole"), found(tmp_path / "killed")
    assert one["provenance"] == other["provenance"]
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())


def test_batch_norm_is_measured_anew(tmp_path):
    trainer = fit(tmp_path, LCSC(3, 4, iterations=5), network=lambda: ConvNet(1, 10, width=2))
    method, data = trainer.lightning_module, trainer.datamodule
    norm = method.network.body[0][1]
    x = torch.stack([data.dataset("train")[i]["input"] for i in range(64)])
    with torch.no_grad():
        outputs = method.network.body[0][0](x)  # [64, 2, 8, 8]
    batches = outputs.unflatten(0, (4, 16))
    torch.testing.assert_close(norm.running_mean, outputs.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, batches.transpose(1, 2).flatten(2).var(-1).mean(0))


def test_more_can_be_better(tmp_path):
    fit(tmp_path, LCSC(2, 4, iterations=10, metric="val/accuracy", mode="max"), EMA(0.9))
    known = json.loads(found(tmp_path)["provenance"])
    assert known["lcsc/combined"] >= known["lcsc/best_ema"] >= known["lcsc/last"] > 0.0


def search_on(folder):
    trainer = fit(folder, LCSC(2, 4, iterations=10), devices=torch.distributed.get_world_size(), strategy="ddp")
    return {name: tensor.clone() for name, tensor in trainer.lightning_module.state_dict().items()}


def test_two_processes_find_what_one_finds(run_processes, tmp_path):
    fit(tmp_path / "one", LCSC(2, 4, iterations=10))
    first, second = run_processes(search_on, 2, tmp_path / "two")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    one, two = (json.loads(found(tmp_path / name)["provenance"]) for name in ("one", "two"))
    assert one["steps"] == two["steps"]
    assert two["coefficients"] == one["coefficients"]
    for name in ("lcsc/last", "lcsc/best_ema", "lcsc/combined"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_a_fit_with_too_few_snapshots_is_left_alone(tmp_path):
    fit(tmp_path, LCSC(100), epochs=1)
    assert not (tmp_path / "checkpoints" / "lcsc.ckpt").exists()


def test_says_what_is_wrong_before_training(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"got 'val/f1'; it may be val/accuracy"):
        fit(tmp_path, LCSC(metric="val/f1"))
    with pytest.raises(MisconfigurationException, match="validation data to search by"):
        fit(tmp_path, LCSC(), limit_val_batches=0)
    for name, value in (("every_n_steps", 0), ("window", 1), ("mode", "less"), ("iterations", -1), ("parents", 0)):
        with pytest.raises(ValueError, match=name):
            LCSC(**{name: value})


def test_a_missing_snapshot_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(LCSC, "_journal_path", lambda self, trainer: self._snapshot_path(trainer, 4))
    with pytest.raises(MisconfigurationException, match="step=00000004.safetensors is missing"):
        fit(tmp_path, LCSC(2, 6))
