import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from leyden.plugins import CSVLogger


def log(logger, rows):
    for step, metrics in rows:
        logger.log_metrics(metrics, step=step)
        logger.save()


ROWS = [
    (0, {"train/loss": 0.5}),
    (1, {"train/loss": torch.tensor(0.25)}),
    (1, {"val/accuracy": 0.9, "epoch": 0}),
    (2, {"train/loss": 0.125}),
    (3, {"train/loss": 1e-9}),
    (3, {"val/accuracy": 1 / 3, "epoch": 1}),
    (4, {"test/accuracy": 0.75}),
]
TEXT = """\
step,epoch,test/accuracy,train/loss,val/accuracy
0,,,0.5,
1,,,0.25,
1,0,,,0.9
2,,,0.125,
3,,,1e-09,
3,1,,,0.3333333333333333
4,,0.75,,
"""


def test_file_lies_in_the_folder_and_columns_join(tmp_path):
    log(CSVLogger(str(tmp_path)), ROWS)
    assert os.listdir(tmp_path) == ["metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text() == TEXT


@pytest.mark.parametrize("cut", range(len(ROWS)))
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_killed_and_resumed_is_the_uninterrupted_file(tmp_path, cut, lost):
    """Killed ``lost`` rows after a checkpoint at ``cut``: the resumed run logs them again."""
    resumed_step = ROWS[cut][0]
    first = [step for step, _ in ROWS].index(resumed_step)
    log(CSVLogger(str(tmp_path)), ROWS[: first + lost])
    logger = CSVLogger(str(tmp_path))
    logger.rewind(resumed_step)
    log(logger, ROWS[first:])
    assert (tmp_path / "metrics.csv").read_text() == TEXT


def test_rewind_gives_the_file_of_that_moment(tmp_path):
    log(CSVLogger(str(tmp_path / "a")), ROWS[:4])
    logger = CSVLogger(str(tmp_path / "b"))
    log(logger, ROWS)
    logger.rewind(3)
    assert (tmp_path / "b/metrics.csv").read_text() == (tmp_path / "a/metrics.csv").read_text()
    logger.rewind(0)
    assert (tmp_path / "b/metrics.csv").read_text() == ""


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    log(CSVLogger(str(tmp_path)), ROWS)
    (tmp_path / "metrics.csv").write_text(TEXT[:-4])
    log(CSVLogger(str(tmp_path)), ROWS[-1:])
    assert (tmp_path / "metrics.csv").read_text() == TEXT


def test_prefix_and_step_numbers_of_its_own(tmp_path):
    logger = CSVLogger(str(tmp_path), prefix="student")
    logger.log_metrics({"loss": 1.0})
    logger.log_metrics({"loss": 2.0})
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == "step,student-loss\n0,1.0\n1,2.0\n"


def test_folder_is_needed():
    with pytest.raises(ValueError, match="CSVLogger needs a save_dir"):
        CSVLogger().log_metrics({"loss": 1.0})


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's, under newer torch
def test_in_a_trainer_only_the_metrics_are_written(tmp_path):
    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            self.log("train/loss", loss)
            return loss

    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(str(tmp_path)),
        max_steps=3,
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(torch.zeros(8, 32), num_workers=0)
    trainer.fit(Model(), loader)
    assert trainer.log_dir == str(tmp_path)
    assert os.listdir(tmp_path) == ["metrics.csv"]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,train/loss"
    assert [line[:4] for line in lines[1:]] == ["0,0,", "1,0,", "2,0,"]
