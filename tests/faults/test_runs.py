"""Bad numbers in the data, files that vanish, and folders that cannot be written."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from leyden.cli import main
from leyden.core import Method
from leyden.data import Digits

RUN = Path("logs/default/faulty")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_nan_in_the_data_stops_the_run_and_names_step_term_and_checkpoint(quick_fit, monkeypatch, capsys):
    arguments = quick_fit("default", RUN.name)
    transfer = Digits.on_after_batch_transfer

    def spoil_sixth_step(self, batch, dataloader_idx):
        if self.trainer.training and self.trainer.global_step == 6:
            batch["input"][5, 0, 3, 3] = torch.nan
        return transfer(self, batch, dataloader_idx)

    last = RUN / "checkpoints/last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "on_after_batch_transfer", spoil_sixth_step)
        for again in (arguments, ["fit", f"--resume={RUN}"]):
            assert main(again) == 1
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"the loss is not finite in step 6: term 'task'; last good checkpoint: {last}" in error
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(tensor.isfinite().all() for tensor in checkpoint["current_model_state"].values())
    assert main(["fit", f"--resume={RUN}"]) == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pictures_that_vanish_stop_the_run_and_are_named(num_workers, quick_fit, monkeypatch, capsys):
    for number in range(40):
        Path(f"pictures/{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), color=number).save(f"pictures/{number % 2}/{number}.png")
    data = ["--data=leyden.data.ImageFolder", "--data.root=pictures", "--data.image_size=8", "--data.batch_size=4"]
    options = ["--model.network.in_channels=3", "--model.network.num_classes=2", f"--data.num_workers={num_workers}"]
    arguments = [argument for argument in quick_fit("default", RUN.name, *data, *options) if argument != "--debug"]

    def training_step(self, batch, batch_idx, step=Method.training_step):
        if self.global_step == 2 and Path("pictures").exists():
            Path("pictures").rename("vanished")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", training_step)
        assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("leyden: error: pictures/")
    assert "cannot be decoded: [Errno 2] No such file or directory" in error
    assert len(error) < 200
    Path("vanished").rename("pictures")
    assert main(["fit", f"--resume={RUN}"]) == 0


def test_file_in_the_place_of_the_log_folder_is_reported_before_the_first_step(quick_fit, monkeypatch, capsys):
    Path("logs").write_text("no folder")
    check_no_step(quick_fit("default", RUN.name), monkeypatch)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "logs" in error
    assert Path("logs").read_text() == "no folder"


def test_file_in_the_place_of_the_checkpoint_folder_is_reported_before_the_first_step(quick_fit, monkeypatch, capsys):
    RUN.mkdir(parents=True)
    (RUN / "checkpoints").write_text("no folder")
    check_no_step(quick_fit("default", RUN.name), monkeypatch)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(RUN / "checkpoints") in error


def check_no_step(arguments, monkeypatch) -> None:
    def training_step(self, batch, batch_idx):
        pytest.fail("a step was made")

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", training_step)
        assert main(arguments) == 1
