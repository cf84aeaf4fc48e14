"""Pages about whole, partial, long and broken runs."""

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from leyden.cli.report.command import write_report

QUICK = [
    *("-c", "trainer/cpu", "-c", "trainer/quick", "-c", "logger/csv"),
    *("--trainer.callbacks.ProgressBar=null", "--trainer.enable_progress_bar=false"),
]
DIGITS = ["--model.network.width=4"]
TEXT = [
    *("-c", "supervised/text", "--trainer.max_steps=4", "--trainer.max_epochs=-1", "--data.context=16"),
    *("--model.network.context=16", "--model.network.dim=8", "--model.network.depth=1", "--model.network.num_heads=2"),
]


class Page(HTMLParser):
    """Checks that tags close each other, and collects what a page asks of the network."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.images, self.text, self.addresses = [], [], 0, "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += tag == "img"
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "poster") and not value.startswith("data:"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def read(path):
    text = Path(path).read_text()
    page = Page(text)
    assert page.addresses == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    return page


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_run(folder="run", rows=(), config=None, **records):
    """A run folder: rows of metrics.csv, config.yaml, files of record/."""
    folder = Path(folder)
    (folder / "record").mkdir(parents=True)
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name, content in records.items():
        (folder / "record" / f"{name}.json").write_text(json.dumps(content))
    return folder


# ---- real runs


def test_page_of_a_classifier():
    assert main(["fit", *QUICK, *DIGITS, "--name=a", "--trainer.callbacks.RunRecord.num_worst=5"]) == 0
    page = read("logs/default/a/report.html")
    assert {"Curves", "Optimisation", "Test", "Environment", "Config"} <= set(page.headings)
    assert {"Loss", "Accuracy", "Learning rate", "Batch size", "Gradient norm", "Throughput"} <= set(page.headings)
    assert {"Confusion matrix", "Worst samples"} <= set(page.headings)
    assert page.images == 5
    assert "What is missing" not in page.headings
    assert "optimizer step" in page.text
    assert "1 run" in page.text


def test_page_of_a_regression():
    assert main(["fit", *QUICK, "-c", "supervised/diabetes", "--name=a"]) == 0
    page = read("logs/supervised/diabetes/a/report.html")
    assert {"Prediction against target", "Worst samples"} <= set(page.headings)
    assert "prediction (same unit)" in page.text


def test_page_of_a_language_model_and_a_later_test():
    assert main(["fit", *QUICK, *TEXT, "--name=a", "--test_after_fit=false"]) == 0
    folder = Path("logs/supervised/text/a")
    page = read(folder / "report.html")
    assert "no pictures of a test" in page.text
    assert main(["test", f"--ckpt_path={folder}/checkpoints/best.ckpt"]) == 0
    assert main(["report", str(folder)]) == 0
    page = read(folder / "report.html")
    assert {"Generated text", "Worst samples"} <= set(page.headings)
    assert "What is missing" not in page.headings


def test_runs_side_by_side(capsys):
    assert main(["fit", *QUICK, *DIGITS, "--name=a"]) == 0
    assert main(["fit", *QUICK, "-c", "regularization/elr", "--name=b", "--seed_everything=1"]) == 0
    assert main(["report", "logs/default/a", "logs/regularization/elr/b"]) == 0
    path = Path("logs/report/default_a-regularization_elr_b.html")
    assert str(path) in capsys.readouterr().out
    page = read(path)
    assert "2 runs; seeds: 0, 1." in page.text
    assert {"Confusion matrix: default/a", "Confusion matrix: regularization/elr/b"} <= set(page.headings)
    assert "What differs in the configs" in page.headings
    assert "EarlyLearningRegularization" in page.text


def test_what_differs_in_the_configs():
    def data(name, **arguments):
        return {"data": {"class_path": f"leyden.data.{name}", "init_args": arguments}, "seed_everything": 0}

    configs = {"a": data("Digits", noise=0.25), "b": data("Digits", noise=0.5), "c": data("Wine", folds=3)}
    assert (
        main(["report", *(str(write_run(name, config=config)) for name, config in configs.items()), "-o", "page.html"])
        == 0
    )
    table = Path("page.html").read_text().split("What differs in the configs")[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        ["data", "Digits {&quot;noise&quot;: 0.25}", "Digits", "Wine {&quot;folds&quot;: 3}"],
        ["data.noise", "0.25", "0.5", "-"],
    ]


def test_a_run_without_record_gets_no_page():
    assert main(["fit", *QUICK, *DIGITS, "--name=a", "--trainer.callbacks.RunRecord=null"]) == 0
    assert not Path("logs/default/a/report.html").exists()
    assert main(["report", "logs/default/a"]) == 0
    page = read("logs/default/a/report.html")
    for line in ("no environment", "no pictures of a test", "no throughput"):
        assert line in page.text


def test_a_page_that_cannot_be_written_does_not_undo_the_fit(capsys):
    Path("logs/default/a/report.html").mkdir(parents=True)
    assert main(["fit", *QUICK, *DIGITS, "--name=a"]) == 0
    captured = capsys.readouterr()
    assert "no page about the run" in captured.err
    assert "test/accuracy" in captured.out


def test_stages_stand_side_by_side():
    write_run("logs/s/x/teacher", [{"step": 0, "val/loss": 1.0}], {"seed_everything": 0})
    write_run("logs/s/x/rounds/0/student", [{"step": 0, "val/loss": 2.0}], {"seed_everything": 0})
    stages = {"teacher": {}, "select": {}, "rounds/0/student": {}}
    Path("logs/s/x/stages.json").write_text(json.dumps({"stages": stages}))
    assert main(["report", "logs/s/x"]) == 0
    page = read("logs/s/x/report.html")
    assert "2 runs" in page.text
    assert "rounds/0/student" in page.text


# ---- partial, strange and long runs


def test_numbers_of_the_run():
    rows = [
        {"step": 9, "epoch": 0, "train/loss": 2.0, "lr-Adam": 0.1},
        {"step": 9, "epoch": 0, "train/loss_epoch": 2.5, "val/loss": 0.25, "val/accuracy": 0.5},
        {"step": 19, "epoch": 1, "train/loss_epoch": 1.5, "val/loss": 0.75, "val/accuracy": 0.625},
        {"step": 20, "epoch": 2, "test/accuracy": 0.875},
    ]
    page = read_report(write_run(rows=rows, config={"seed_everything": 5}))
    for text in (
        "0.8750test/accuracy",
        "0.2500lowest val/loss",
        "0.6250last val/accuracy",
        "20optimizer steps",
        "2epochs",
    ):
        assert text in page.text
    assert "One run, seed 5" in page.text


def read_report(*folders):
    assert main(["report", *map(str, folders), "-o", "page.html"]) == 0
    return read("page.html")


def test_terms_and_other_columns_have_charts():
    row = {
        "step": 0,
        "train/task": 1.0,
        "train/task_epoch": 1.0,
        "train/kd": 0.5,
        "train/kd_epoch": 0.5,
        "memory/cut": 2,
    }
    page = read_report(write_run(rows=[row, row | {"step": 1}]))
    assert {"Loss terms", "Terms of the training loss", "Other numbers", "memory/cut"} <= set(page.headings)


def test_a_killed_run_says_what_is_missing():
    start = {"time": "now", "step": 0, "environment": {"python": "3"}}
    run = write_run(rows=[{"step": 0, "train/loss": 1.0}, {"step": 1, "train/loss": 2.0}], sessions=[start])
    with open(run / "metrics.csv", "a") as file:
        file.write("2,0.")  # cut in the middle
    page = read_report(run)
    for line in ("the fit did not end", "no config", "no pictures of a test", "no throughput"):
        assert line in page.text
    assert "2optimizer steps" in page.text


def test_a_broken_record_costs_only_its_part():
    run = write_run(rows=[{"step": 0, "val/loss": 1.0}])
    (run / "record" / "test.json").write_text('{"confusion": [[1')
    page = read_report(run)
    assert "record/test.json cannot be read" in page.text
    assert "Curves" in page.headings


def test_values_that_are_not_finite_are_counted():
    rows = [{"step": step, "train/loss": value} for step, value in enumerate([1.0, math.nan, math.inf, 2.0])]
    assert "2 values are not finite" in read_report(write_run(rows=rows)).text
    assert "no finite value" in read_report(write_run("nan", rows=rows[1:2])).text


def test_nothing_of_a_run_is_markup():
    evil = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    sample = {"loss": 1.0, "index": evil, "prediction": evil, "target": evil, "image": '"><script>alert(3)</script>'}
    test = {"num_samples": 1, "confusion": [[1]], "class_names": [evil], "worst": [sample]}
    test |= {
        "generated": [{"prompt": evil, "text": evil}],
        "confused_pairs": [{"target": evil, "prediction": evil, "count": 1}],
    }
    session = {"time": evil, "step": 0, "environment": {evil: evil}}
    rows = [{"step": 0, "val/<script>alert(4)</script>": 1.0, "<img src=x>": 1.0}]
    folders = [
        write_run(name, rows=rows, config={"seed_everything": evil, evil: name}, test=test, sessions=[session])
        for name in ("<b>a", "<b>b")
    ]
    for folder in (folders, folders[:1]):
        page = read_report(*folder)
        text = Path("page.html").read_text()
        assert text.count("<script") == 1
        assert "<b>a" not in text
        assert page.images == len(folder)


def test_pages_of_long_runs_are_small():
    rows = [
        {"step": step, **{f"train/term{n}": math.sin(step * n) for n in range(12)}, "train/loss": 2 + math.cos(step)}
        for step in range(6_000)
    ]
    confusion = {
        "num_samples": 10_000,
        "confusion": [[1] * 100] * 100,
        "class_names": [f"class {n}" for n in range(100)],
    }
    runs = [write_run(f"run{number}", rows=rows, test=confusion) for number in range(3)]
    read_report(*runs)
    assert os.path.getsize("page.html") < 2_000_000
    read_report(runs[0])
    assert os.path.getsize("page.html") < 2_000_000


# ---- bad input


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\x00\xff\xfe\x80", "cannot be read"),
        (b"a,b\n1,2\n", "has no column step"),
        (b"step,loss\n1,two\n", "line 2: could not convert string to float"),
    ],
)
def test_an_unreadable_log_is_one_line_and_nothing_is_written(capsys, content, line):
    run = write_run(config={})
    (run / "metrics.csv").write_bytes(content)
    assert main(["report", str(run)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error
    assert not (run / "report.html").exists()


def test_a_folder_that_is_no_run_is_one_line(capsys):
    write_run("logs/some/run", config={})
    Path("empty").mkdir()
    for name, reason in (("empty", "has no config.yaml or metrics.csv"), ("nowhere", "does not exist")):
        assert main(["report", name]) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert error == f"leyden: error: {name} is no folder of a run: it {reason}; the newest run is logs/some/run"


def test_the_page_before_stays_if_the_new_one_cannot_be_made():
    run = write_run(rows=[{"step": 0, "val/loss": 1.0}])
    write_report([run], Path("page.html"), title="first")
    (run / "metrics.csv").write_text("x\n1\n")
    with pytest.raises(ValueError, match="no column step"):
        write_report([run], Path("page.html"))
    assert "first" in Path("page.html").read_text()
