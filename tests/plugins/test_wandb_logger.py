from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from leyden.plugins import WandbLogger


@pytest.fixture
def _nobody_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    wandb.teardown()  # W&B looks at the environment once
    yield
    wandb.teardown()


@pytest.mark.usefixtures("_nobody_answers")
def test_a_server_that_cannot_be_reached_does_not_cost_the_run(tmp_path):
    logger = WandbLogger(save_dir=str(tmp_path), id="alone", resume="allow", mode="online")
    with pytest.warns(
        UserWarning, match=r"W&B does not answer: the run is logged offline, 'wandb sync .*connection refu"
    ):
        logger.log_metrics({"val/loss": 1.0}, step=0)
    assert logger.experiment.settings.mode == "offline"
    assert logger.experiment.id == "alone"
    wandb.finish()
    (file,) = Path("wandb").glob("offline-run-*-alone/run-alone.wandb")
    assert file.stat().st_size > 0


def test_a_server_that_goes_away_costs_the_upload_and_not_what_comes_after_the_fit(monkeypatch, tmp_path):
    def finalize(self, status):
        raise wandb.errors.AuthenticationError("Failed to verify credentials: did not respond")

    monkeypatch.setattr(LightningWandbLogger, "finalize", finalize)
    logger = WandbLogger(save_dir=str(tmp_path), mode="offline")
    with pytest.warns(UserWarning, match="W&B does not answer: the checkpoint is not uploaded, .*did not respond"):
        logger.finalize("success")
