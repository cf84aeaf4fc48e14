from pathlib import Path

import leyden
from leyden.catalog import evidence, papers
from leyden.catalog.results import render_results

PAGE = Path(leyden.__file__).parents[2] / "docs" / "results.md"


def report(name, mode, difference, interval, verdict):
    return {
        "metric": "test/x",
        "mode": mode,
        "baseline": {"name": "plain", "mean": 0.5, "std": 0.1},
        "methods": [
            {
                "name": name,
                "mean": 0.5 + difference,
                "std": None,
                "difference": {"n": 5, "mean": difference, "interval": interval},
                "time_ratio": 1.234,
                "memory_ratio": None,
                "verdict": verdict,
            }
        ],
    }


def test_page_is_what_the_evidence_gives():
    assert PAGE.read_text() == render_results(), "docs/results.md is old: run 'leyden results'"


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    monkeypatch.setattr(papers, "FOLDER", tmp_path / "papers")
    (tmp_path / "papers").mkdir()
    for slug, family in (("b", "weights"), ("a", "weights"), ("c", "batch")):
        (tmp_path / "papers" / f"{slug}_paper.yaml").write_text(
            f"title: T\nauthors: A\nyear: 2031\nfamily: {family}\nchanges: x\nparts: []\ntests: []\n"
            f"comparisons: [{{experiment: e, baseline: plain, metric: test/x, mode: max, evidence: {slug}}}]\n"
        )
    evidence.write_evidence("a", report("weights/a", "max", 0.25, [0.125, 0.375], "better"))
    evidence.write_evidence("b", report("weights/b", "min", 0.25, None, "one seed shows nothing"))
    evidence.write_evidence("c", report("batch/c", "min", -0.25, [-0.375, -0.125], "better"))
    lines = render_results().splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## Batch", "## Weights"]
    numbers = "| test/x {} | 0.5000 ± 0.1000 | {} | 5 | 1.23x | - | {} |"
    assert [line for line in lines if "| `" in line] == [
        f"| {name}_paper | `{experiment}` | `plain` {numbers.format(arrow, shown, verdict)}"
        for name, experiment, arrow, shown, verdict in (
            ("c", "batch/c", "↓", "0.2500 | -0.2500 [-0.3750, -0.1250]", "better"),
            ("a", "weights/a", "↑", "0.7500 | +0.2500 [+0.1250, +0.3750]", "better"),
            ("b", "weights/b", "↓", "0.7500 | +0.2500", "one seed shows nothing"),
        )
    ]
