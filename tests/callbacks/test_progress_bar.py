import pytest
from lightning.pytorch.callbacks import RichProgressBar

from leyden.callbacks import ProgressBar
from leyden.callbacks import progress_bar as module


class Clock:
    """Advances by a fixed time with every look."""

    def __init__(self, tick):
        self.now, self.tick = 1000.0, tick

    def monotonic(self):
        self.now += self.tick
        return self.now


@pytest.fixture
def updates(make_method, make_data, make_trainer, monkeypatch):
    """``updates(tick, rate)``: numbers of the batches after which the bar was drawn, in 2 epochs of 6 batches."""

    def fit(tick, rate=4, **kwargs):
        drawn = []
        original = RichProgressBar.on_train_batch_end

        def note(self, trainer, pl_module, outputs, batch, batch_idx):
            drawn.append(batch_idx)
            original(self, trainer, pl_module, outputs, batch, batch_idx)

        monkeypatch.setattr(RichProgressBar, "on_train_batch_end", note)
        monkeypatch.setattr(module, "time", Clock(tick))
        bar = ProgressBar(rate)
        trainer = make_trainer(bar, enable_progress_bar=True, max_epochs=2, **kwargs)
        trainer.fit(make_method(), datamodule=make_data())
        return drawn, bar

    return fit


@pytest.mark.parametrize(
    ("tick", "rate", "expected"),
    [
        (0.0, 4, [0, 5, 5]),  # the first batch, as nothing was drawn before, and the end of each epoch
        (0.125, 4, [0, 2, 4, 5, 1, 3, 5]),  # every second batch, counted from the last drawing
        (0.25, 4, [0, 1, 2, 3, 4, 5] * 2),
        (0.25, 2, [0, 2, 4, 5, 1, 3, 5]),
    ],
)
def test_is_drawn_by_the_clock(updates, tick, rate, expected):
    drawn, _ = updates(tick, rate)
    assert drawn == expected


def test_ends_at_the_last_batch_with_the_metrics(updates, capsys):
    _, bar = updates(0.0)
    assert bar.train_progress_bar.completed == bar.train_progress_bar.total == 6
    assert {"train/loss", "val/loss", "val/accuracy"} <= bar.get_metrics(
        bar.trainer, bar.trainer.lightning_module
    ).keys()
    printed = capsys.readouterr().out
    assert "Epoch 1/1" in printed
    assert "6/6" in printed


def test_is_quiet_when_disabled(make_method, make_data, make_trainer, capsys):
    bar = ProgressBar()
    bar.disable()  # as Lightning does on all processes but one
    make_trainer(bar, enable_progress_bar=True, max_epochs=1).fit(make_method(), datamodule=make_data())
    assert bar.progress is None
    assert "Epoch" not in capsys.readouterr().out


def test_evaluations_have_a_bar(make_method, make_data, make_trainer, capsys):
    bar = ProgressBar()
    trainer = make_trainer(bar, enable_progress_bar=True)
    trainer.test(make_method(), datamodule=make_data(), verbose=False)
    trainer.predict(make_method(), datamodule=make_data())
    printed = capsys.readouterr().out
    assert "Testing" in printed
    assert "Predicting" in printed


def test_rate_0_shows_nothing(updates):
    _, bar = updates(0.0, rate=0)
    assert bar.progress is None
