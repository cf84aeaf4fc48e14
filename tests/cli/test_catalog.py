import json
import subprocess
import sys

import pytest

from leyden.catalog import evidence, papers
from leyden.catalog.evidence import FOLDER
from leyden.catalog.papers import read_paper
from leyden.cli import main
from leyden.cli.compare import source_digest


def test_papers(capsys):
    assert main(["papers", "ema"]) == 0
    assert any(line.startswith("ema  ") for line in capsys.readouterr().out.splitlines())
    assert main(["papers", "no-such-word-anywhere"]) == 0
    assert capsys.readouterr().out == "no paper has all of these words\n"


def test_papers_for_programs(capsys):
    assert main(["papers", "--json", "--family=weights", "--room=callbacks"]) == 0
    (record,) = [record for record in json.loads(capsys.readouterr().out) if record["slug"] == "ema"]
    assert record["comparisons"][0]["baseline"] == "weights/without_ema"


def test_show(capsys):
    assert main(["show", "ema"]) == 0
    printed = capsys.readouterr().out
    assert "Acceleration of Stochastic Approximation by Averaging" in printed
    assert "leyden.callbacks.EMA(decay: float=0.999" in printed
    assert "Baseline: experiment/weights/without_ema.yaml" in printed  # the YAML
    assert "leyden compare weights/without_ema weights/ema --metric test/accuracy" in printed
    assert "Evidence ema: " in printed
    assert "(paired t)" in printed


def test_evidence_of_another_config_is_called_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    for comparison in read_paper("ema").comparisons:
        file = FOLDER / f"{comparison.evidence}.json"
        report = json.loads(file.read_text())
        report["baseline"]["source"] = source_digest(comparison.baseline)
        report["methods"][0]["source"] = source_digest(comparison.experiment)
        (tmp_path / file.name).write_text(json.dumps(report))
    assert main(["show", "ema"]) == 0
    assert "recorded before" not in capsys.readouterr().out
    report["methods"][0]["source"] = "another"
    (tmp_path / file.name).write_text(json.dumps(report))
    assert main(["show", "ema"]) == 0
    assert f"recorded before the config of {comparison.experiment} changed" in capsys.readouterr().out


def test_show_unknown(capsys, monkeypatch):
    monkeypatch.setattr(papers, "paper_slugs", lambda: ["ema", "lamb", "maid"])
    known = {"emma": "did you mean ema or maid?", "lam": "did you mean lamb?", "0000": "'leyden papers' lists all"}
    for slug, advice in known.items():
        assert main(["show", slug]) == 1
        assert capsys.readouterr().err == f"leyden: error: there is no paper '{slug}' in the catalog; {advice}\n"


@pytest.mark.parametrize("command", [["papers"], ["papers", "ema", "--json"], ["show", "ema"]])
def test_needs_no_torch(command):
    code = f"""
import sys
from leyden.cli import main
assert main({command}) == 0
heavy = {{"torch", "lightning", "numpy", "rich", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
