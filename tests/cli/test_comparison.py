import json

import pytest
from PIL import Image

from leyden.catalog.evidence import verdict
from leyden.cli.comparison import Arm, check_data, config_changes, make_report, print_report
from leyden.cli.comparison_plots import learning_curve, plot_curves, plot_differences
from leyden.cli.config import ConfigError

DATA = {"class_path": "leyden.data.Digits", "init_args": {"batch_size": 64, "split_seed": 0, "label_noise": 0.0}}
EMA = {"class_path": "leyden.callbacks.EMA", "init_args": {"decay": 0.99}}
OTHER = {"class_path": "leyden.callbacks.Other", "init_args": {}}


def result(seed, accuracy, seconds=2.0, cpu_seconds=1.0, memory=100.0, accelerator="cpu"):
    return {
        "seed": seed,
        "metrics": {"test/accuracy": accuracy},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": memory,
        "accelerator": accelerator,
        "threads": 1,
        "versions": {"torch": "2"},
    }


def arm(name, results, folder=None, **resolved):
    return Arm(name, {"data": DATA} | resolved, name, name, folder, {run["seed"]: run for run in results})


def report_of(arms, **changes):
    return make_report(arms, "test/accuracy", "max", seeds=5, jobs=1, settings=[], **changes)


@pytest.fixture
def arms():
    baseline = arm("plain", [result(seed, value) for seed, value in enumerate([0.90, 0.92, 0.88, 0.91, 0.89])])
    method = arm(
        "ours",
        [
            result(seed, value, cpu_seconds=time, seconds=50.0, memory=120.0)
            for seed, (value, time) in enumerate([(0.92, 1.1), (0.93, 1.5), (0.91, 1.2), (0.91, 9.0), (0.93, 1.3)])
        ],
        trainer={"callbacks": [EMA]},
    )
    return [baseline, method]


def test_report(arms):
    report = report_of(arms)
    assert report["baseline"]["mean"] == pytest.approx(0.90)
    assert report["baseline"]["std"] == pytest.approx(0.0158114, abs=1e-7)  # sqrt(0.001 / 4)
    (method,) = report["methods"]
    assert method["difference"]["mean"] == pytest.approx(0.02)
    margin = 2.7764451 * 0.0158114 / 5**0.5
    assert method["difference"]["interval"] == pytest.approx([0.02 - margin, 0.02 + margin], abs=1e-7)
    assert method["difference"]["by_seed"]["2"] == pytest.approx(0.03)
    assert method["time_ratio"] == 1.3  # median, of the time of the processor
    assert method["memory_ratio"] == 1.2
    assert method["verdict"] == "better"
    assert method["changes"] == {"trainer": [None, {"callbacks": [EMA]}]}
    assert json.loads(json.dumps(report)) == report


def test_pairs_are_of_the_same_seed(arms):
    del arms[0].results[0]
    arms[1].results[4]["metrics"]["test/accuracy"] = None  # it diverged
    difference = report_of(arms)["methods"][0]["difference"]
    assert difference["n"] == 3
    assert set(difference["by_seed"]) == {"1", "2", "3"}
    assert difference["mean"] == pytest.approx((0.01 + 0.03 + 0.0) / 3)


def test_interrupted_runs_have_no_time(arms):
    for seed in (1, 3):
        arms[1].results[seed]["cpu_seconds"] = None
    assert report_of(arms)["methods"][0]["time_ratio"] == 1.2


def test_on_a_gpu_the_clock_counts(arms):
    for run in arms[1].results.values():
        run["accelerator"] = "cuda"
    assert report_of(arms)["methods"][0]["time_ratio"] == 25.0


def test_no_pair(arms):
    arms[1].results = {}
    arms[1].failures = {0: "it broke"}
    report = report_of(arms)
    assert report["methods"][0]["difference"] is None
    assert report["methods"][0]["failures"] == {"0": "it broke"}
    print_report(report)


@pytest.mark.parametrize(
    ("interval", "mode", "expected"),
    [
        ((0.1, 0.2), "max", "better"),
        ((0.1, 0.2), "min", "worse"),
        ((-0.2, -0.1), "min", "better"),
        ((-0.2, -0.1), "max", "worse"),
        ((-0.1, 0.2), "max", "no difference seen at this scale"),
        ((0.0, 0.0), "max", "no difference seen at this scale"),
        ((0.1, 0.1), "max", "the same difference in all seeds: too coarse to say"),
        (None, "max", "one seed shows nothing"),
    ],
)
def test_verdict(interval, mode, expected):
    assert verdict(interval, mode) == expected


def test_config_changes():
    before = {"data": DATA, "trainer": {"max_epochs": 3, "callbacks": [OTHER, EMA]}}
    changed = EMA | {"init_args": {"decay": 0.9}}
    after = {"data": DATA, "trainer": {"max_epochs": 4, "callbacks": [changed, OTHER, OTHER]}}
    assert config_changes(before, after) == {
        "trainer.max_epochs": [3, 4],
        "trainer.callbacks.EMA.decay": [0.99, 0.9],
        "trainer.callbacks.Other_2": [None, OTHER],
    }
    assert config_changes({"optimizer": EMA}, {"optimizer": OTHER}) == {"optimizer": [EMA, OTHER]}


def test_other_data_are_refused():
    other = {"class_path": "leyden.data.Wine", "init_args": {}}
    with pytest.raises(ConfigError, match=r"data is leyden\.data\.Digits and leyden\.data\.Wine"):
        check_data(arm("a", []), arm("b", [], data=other))
    split = DATA | {"init_args": DATA["init_args"] | {"split_seed": 1}}
    with pytest.raises(ConfigError, match=r"data\.split_seed is 0 and 1"):
        check_data(arm("a", []), arm("b", [], data=split))


def test_data_may_be_read_another_way():
    sizes = DATA | {"init_args": DATA["init_args"] | {"batch_size": 8, "augment": EMA}}
    assert check_data(arm("a", []), arm("b", [], data=sizes)) == []
    noisy = DATA | {"init_args": DATA["init_args"] | {"label_noise": 0.4}}
    assert check_data(arm("a", []), arm("b", [], data=noisy)) == [
        "a and b differ in their data: data.label_noise is 0.0 and 0.4"
    ]


def test_table(arms, capsys):
    print_report(report_of(arms))
    printed = capsys.readouterr().out
    assert "test/accuracy (more is better), 5 seeds" in printed
    assert "0.9000 ± 0.0158" in printed
    assert "[+0.0004, +0.0396]" in printed
    assert "1.30x" in printed


def test_plots(arms, tmp_path):
    for number, one in enumerate(arms):
        one.folder = tmp_path / one.name
        for seed in one.results:
            (one.folder / f"seed-{seed}").mkdir(parents=True)
            rows = [f"{step},{0.1 * step + 0.01 * (seed + number)}," for step in (1, 2, 3)]
            (one.folder / f"seed-{seed}" / "metrics.csv").write_text("\n".join(["step,val/accuracy,x", *rows]) + "\n")
    files = [tmp_path / "plain" / f"seed-{seed}" / "metrics.csv" for seed in (0, 1)]
    assert learning_curve(files, "val/accuracy") == [
        (step, [pytest.approx(0.1 * step), pytest.approx(0.1 * step + 0.01)]) for step in (1, 2, 3)
    ]
    plot_curves(tmp_path / "curves.png", report_of(arms), arms)
    plot_differences(tmp_path / "differences.png", report_of(arms))
    for name in ("curves.png", "differences.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 20  # something was drawn


def test_a_single_epoch_is_seen(arms, tmp_path):
    for one in arms:
        one.folder = tmp_path / one.name
        for seed in one.results:
            (one.folder / f"seed-{seed}").mkdir(parents=True)
            (one.folder / f"seed-{seed}" / "metrics.csv").write_text(f"step,val/accuracy\n9,0.{5 + seed}\n")
    plot_curves(tmp_path / "curves.png", report_of(arms), arms)
    with Image.open(tmp_path / "curves.png") as image:
        left = image.convert("RGB").crop((0, 0, image.width // 2, int(0.75 * image.height)))  # without the legend
        colours = {colour: count for count, colour in left.getcolors(maxcolors=2**24)}
    assert colours[0x00, 0x72, 0xB2] > 20
