"""What is logged, what lies in the files of a run that was cut, and what is recorded of a test."""

import base64
import csv
import io
import json
import math
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from leyden.callbacks import RunRecord, run_record
from leyden.callbacks._test_record import MAX_POINTS, TestRecord
from leyden.methods import Classification, LanguageModeling, Regression
from leyden.models import GPT, MLP
from leyden.plugins import CSVLogger


class Norms(Callback):
    """The norm of all gradients before each optimizer step, in float64."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares = [p.grad.double().square().sum() for group in optimizer.param_groups for p in group["params"]]
        self.seen.append(math.sqrt(sum(squares)))


def rows(text, column):
    return [(int(row["step"]), float(row[column])) for row in csv.DictReader(io.StringIO(text)) if row[column]]


def timing(folder):
    with open(folder / "record" / "timing.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def sessions(folder):
    return json.loads((folder / "record" / "sessions.json").read_text())


# ---- training


def test_gradient_norm_before_clipping_and_batch_size_in_logged_steps(run):
    norms = Norms()
    made = run(
        "a",
        callbacks=lambda: [norms, RunRecord()],
        max_epochs=2,
        log_every_n_steps=5,
        gradient_clip_val=1e-3,
    )
    logged = rows(made.log, "train/grad_norm")
    assert [step for step, _ in logged] == [4, 9]
    assert [norm for _, norm in logged] == pytest.approx([norms.seen[4], norms.seen[9]], rel=1e-5)
    assert min(norms.seen) > 1e-3
    assert rows(made.log, "train/batch_size") == [(4, 8.0), (9, 8.0)]


def test_batch_size_is_that_of_the_optimizer_step_and_of_the_last_smaller_batch(run):
    # batch_size counts accumulated micro-batches too; 48 = 20 + 20 + 8
    made = run(
        "a",
        callbacks=lambda: [RunRecord()],
        batch_size=20,
        max_epochs=1,
        accumulate_grad_batches=2,
        data={"drop_last": False},
    )
    assert rows(made.log, "train/batch_size") == [(0, 20.0), (1, 20.0), (2, 8.0)]


class TwoOptimizers(Classification):
    """One for the hidden layer, one for the head, of which only the head's loss is scaled."""

    def __init__(self, network, **kwargs):
        super().__init__(network, **kwargs)
        self.automatic_optimization = False

    def configure_optimizers(self):
        parameters = list(self.network.parameters())
        return [torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.1)]

    def training_step(self, batch, batch_idx):
        _, terms = self.terms_of(self.transform_batch(batch))
        loss = self.sum_terms(terms, num_samples=len(batch["input"]))
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def test_several_optimizers_have_a_norm_each(make_trainer, make_method, make_data, tmp_path):
    norms = Norms()
    trainer = make_trainer(norms, RunRecord(), max_epochs=1, logger=CSVLogger(str(tmp_path)))
    trainer.fit(make_method(TwoOptimizers), make_data())
    for number in range(2):
        logged = [norm for _, norm in rows((tmp_path / "metrics.csv").read_text(), f"train/grad_norm_{number}")]
        assert len(logged) == 6
        assert logged == pytest.approx(norms.seen[number::2], rel=1e-5)


@pytest.mark.parametrize("cuts", [(4,), (9, 15, 20)])
def test_a_run_that_was_cut_logs_the_same_and_tells_its_sessions(run, cuts):
    whole = run("whole", callbacks=lambda: [RunRecord()], log_every_n_steps=2)
    cut = run("cut", cuts, callbacks=lambda: [RunRecord()], log_every_n_steps=2)
    assert cut.log == whole.log
    assert len(rows(cut.log, "train/grad_norm")) == 12

    told = sessions(cut.folder)
    assert [session["step"] for session in told] == [0, *cuts]
    assert [session["end"]["state"] for session in told] == ["stopped by Cut"] * len(cuts) + ["ended"]
    assert [session["end"]["step"] for session in told] == [*cuts, 24]
    assert told[0]["environment"]["torch"] == torch.__version__
    assert told[0]["end"]["parameters"] == 6 * 8 + 8 + 8 * 3 + 3
    table = timing(cut.folder)
    assert [row["step"] for row in table] == sorted({row["step"] for row in table})
    for before, after in pairwise(table):
        if before["session"] == after["session"]:
            assert after["samples"] - before["samples"] == 8 * (after["step"] - before["step"])
            assert after["seconds"] >= before["seconds"]


def test_a_run_that_starts_again_forgets_the_one_before(make_trainer, make_method, make_data, tmp_path):
    for _ in range(2):
        make_trainer(RunRecord(), max_epochs=1).fit(make_method(), make_data())
    assert len(sessions(tmp_path)) == 1
    assert [row["step"] for row in timing(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_the_clock_stands_still_in_validation(make_trainer, make_method, make_data, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0, strftime=lambda text: text)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(run_record, "time", clock)

    class Passing(Callback):
        def on_train_batch_end(self, *_):
            clock.now += 1.0

        def on_validation_batch_end(self, *_):
            clock.now += 50.0

    make_trainer(Passing(), RunRecord(), max_epochs=2, log_every_n_steps=3).fit(make_method(), make_data())
    assert [(row["step"], row["seconds"]) for row in timing(tmp_path)] == [(0, 0), (3, 3), (6, 6), (9, 9)]
    assert sessions(tmp_path)[0]["end"]["seconds"] == 12 + 2 * 2 * 50


def test_a_dry_run_writes_nothing(make_trainer, make_method, make_data, tmp_path):
    trainer = make_trainer(RunRecord(), fast_dev_run=True)
    trainer.fit(make_method(), make_data())
    trainer.test(make_method(), make_data(), verbose=False)
    assert not (tmp_path / "record").exists()


def test_num_worst_must_not_be_negative():
    with pytest.raises(ValueError, match="num_worst must be at least 0, got -1"):
        RunRecord(-1)


# ---- test


def test_test_of_a_classifier(make_trainer, make_method, make_data, tmp_path):
    method, data = make_method(), make_data(4)
    make_trainer(RunRecord(num_worst=3)).test(method, data, verbose=False)
    record = json.loads((tmp_path / "record" / "test.json").read_text())
    batch = data.dataset("test")[:]
    with torch.no_grad():
        p = method.eval()(batch["input"]).double().softmax(-1)
    counts = [[0] * 3 for _ in range(3)]
    for target, prediction in zip(batch["target"].tolist(), p.argmax(-1).tolist(), strict=True):
        counts[target][prediction] += 1
    assert record["confusion"] == counts
    assert record["num_samples"] == 9
    loss = -p[torch.arange(9), batch["target"]].log()
    order = loss.argsort(descending=True)[:3].tolist()
    assert [sample["index"] for sample in record["worst"]] == order
    assert [sample["loss"] for sample in record["worst"]] == pytest.approx(loss[order].tolist(), rel=1e-5)
    assert [sample["probability"] for sample in record["worst"]] == pytest.approx(
        (-loss[order]).exp().tolist(), rel=1e-5
    )
    assert list(record["worst"][0]["values"].values()) == batch["input"][order[0]].tolist()


def recorded(data, *batches, num_worst=2, model=None):
    record = TestRecord(num_worst, data)
    for logits, batch in batches:
        record.add(logits, batch)
    return record.finish(model)


def test_pictures_are_those_of_the_samples():
    image = torch.linspace(-3.0, 5.0, 64).view(1, 1, 8, 8)  # of any range
    batch = {"input": image, "target": torch.tensor([1]), "index": torch.tensor([7])}
    (sample,) = recorded(SimpleNamespace(class_names=["cat", "dog"]), (torch.tensor([[2.0, 0.0]]), batch))["worst"]
    assert (sample["index"], sample["prediction"], sample["target"]) == (7, "cat", "dog")
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(sample["image"])))[:, :, 0]
    assert torch.from_numpy(pixels.copy()).flatten().tolist() == pytest.approx(
        torch.linspace(0, 1, 64).tolist(), abs=1 / 255
    )


def test_samples_without_a_class_are_left_out():
    batch = {"input": torch.zeros(3, 2), "target": torch.tensor([0, -1, 255])}
    found = recorded(None, (torch.zeros(3, 2), batch))
    assert found["confusion"] == [[1, 0], [0, 0]]
    assert len(found["worst"]) == 1


def test_inputs_of_other_kinds_are_no_harm():
    batch = {
        "input": {"a": torch.zeros(2)},
        "target": torch.tensor([0, 1]),
        "mix_lam": torch.tensor(0.5),
        "source": ["a", "b"],
    }
    found = recorded(None, (torch.zeros(2, 2), batch))
    assert found["num_samples"] == 2
    assert [sample.keys() & {"image", "values"} for sample in found["worst"]] == [set(), set()]


def test_inputs_may_differ_in_size():
    batches = [
        (torch.tensor([[0.0, wrong]]), {"input": torch.zeros(1, 3, size, size), "target": torch.tensor([0])})
        for size, wrong in ((4, 1.0), (8, 3.0), (16, 2.0))
    ]
    found = recorded(None, *batches)
    assert [sample["loss"] for sample in found["worst"]] == pytest.approx([math.log(1 + math.exp(x)) for x in (3, 2)])


def test_of_many_classes_the_most_confused_are_kept():
    target = torch.tensor([3, 3, 3, 150, 150, 7])
    prediction = torch.tensor([4, 4, 3, 9, 9, 7])
    logits = nn.functional.one_hot(prediction, 200).float()
    found = recorded(None, (logits, {"input": torch.zeros(6, 1), "target": target}))
    pairs = [(pair["target"], pair["prediction"], pair["count"]) for pair in found["confused_pairs"]]
    assert sorted(pairs) == [("150", "9", 2), ("3", "4", 2)]


def test_test_of_a_regression():
    target = torch.tensor([[1.0], [2.0], [3.0]])
    batch = {"input": torch.zeros(3, 2), "target": target, "index": torch.arange(3)}
    found = recorded(SimpleNamespace(num_classes=None), (target + torch.tensor([[0.5], [0.0], [-2.0]]), batch))
    assert found["pairs"] == [[[1.0, 1.5], [2.0, 2.0], [3.0, 1.0]]]
    assert [(sample["index"], sample["loss"]) for sample in found["worst"]] == [(2, 4.0), (0, 0.25)]


def test_of_many_points_some_are_kept():
    target = torch.arange(10.0 * MAX_POINTS).unsqueeze(-1)
    found = recorded(None, (target, {"input": torch.zeros(len(target), 1), "target": target}))
    assert len(found["pairs"][0]) == MAX_POINTS
    assert found["num_samples"] == 10 * MAX_POINTS


class NextLetter(nn.Module):
    """Is sure that the next token is the last one plus 1."""

    def forward(self, tokens):
        return 10.0 * nn.functional.one_hot((tokens + 1) % 256, 256).float()


def test_test_of_a_language_model():
    model = NextLetter()
    data = SimpleNamespace(decode=lambda tokens: bytes(tokens.tolist()).decode("latin-1"))
    tokens = torch.tensor([list(b"abcd"), list(b"axcd"), list(b"mnop")])
    target = torch.tensor([list(b"bcde"), list(b"xcde"), list(b"nop!")])
    batch = {"input": tokens, "target": target, "index": torch.arange(3)}
    found = recorded(data, (model(tokens), batch), model=model)
    assert [one["prompt"] for one in found["generated"]] == ["ab", "ax", "mn"]
    assert found["generated"][0]["text"].startswith("cdefg")
    assert [sample["text"] for sample in found["worst"]] == ["axcd", "mnop"]  # two wrong tokens, one
    wrong, right = math.log(math.exp(10) + 255), math.log(1 + 255 * math.exp(-10))
    assert [sample["loss"] for sample in found["worst"]] == pytest.approx(
        [(2 * wrong + 2 * right) / 4, (wrong + 3 * right) / 4], rel=1e-4
    )


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(2, 1), torch.tensor([0, 1])),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)),
        (torch.zeros(2), torch.zeros(2)),
    ],
)
def test_of_anything_else_nothing_is_recorded(logits, target):
    assert recorded(None, (logits, {"input": torch.zeros(2, 1), "target": target})) is None


@pytest.mark.parametrize(
    ("method", "network", "target"),
    [
        (Classification, partial(MLP, 4, 3), torch.tensor([0, 1])),
        (Regression, partial(MLP, 4, 3), torch.zeros(2, 3)),
        (LanguageModeling, partial(GPT, 9, 4, dim=8, depth=1, num_heads=2), torch.zeros(2, 4, dtype=torch.int64)),
    ],
)
def test_methods_hand_their_outputs_to_callbacks(method, network, target):
    method = method(network()).eval()
    inputs = torch.zeros(2, 4, dtype=target.dtype if target.ndim == 2 and target.shape[1] == 4 else torch.float32)
    outputs = method.test_step({"input": inputs, "target": target}, 0)
    assert torch.equal(outputs["logits"], method(inputs))


def finish_part(part):
    import torch.distributed as dist

    target = torch.arange(8) % 3
    logits = torch.sin(torch.arange(24.0)).view(8, 3)
    batch = {"input": torch.arange(8.0).unsqueeze(-1), "target": target, "index": torch.arange(8)}
    mine = slice(dist.get_rank(), None, 2) if part else slice(None)
    return recorded(None, (logits[mine], {key: value[mine] for key, value in batch.items()}), num_worst=3)


def test_processes_put_their_parts_together(run_processes):
    (whole,) = run_processes(finish_part, 1, False)
    first, second = run_processes(finish_part, 2, True)
    assert second is None
    assert first == whole
