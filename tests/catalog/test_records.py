"""Each record of the catalog against the code, the configs, the tests and the evidence."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import leyden
from leyden.catalog.evidence import evidence_slugs, read_evidence
from leyden.catalog.papers import paper_slugs, read_paper, read_papers
from leyden.catalog.parts import describe_part
from leyden.cli.config import find_config

ROOT = Path(leyden.__file__).parents[2]
RECORDS = [pytest.param(read_paper(slug), id=slug) for slug in paper_slugs()]
COMPARISONS = [
    pytest.param(comparison, id=comparison.evidence) for paper in read_papers() for comparison in paper.comparisons
]


@pytest.mark.parametrize("paper", RECORDS)
def test_parts_are_there(paper):
    for path in paper.parts:
        room, name = path.rsplit(".", 1)
        part = getattr(import_module(room), name)
        described = describe_part(path)
        assert described.summary == inspect.getdoc(part).split("\n")[0]
        written = ast.parse(f"def {described.signature}: ...").body[0].args
        names = [argument.arg for argument in [*written.posonlyargs, *written.args, *written.kwonlyargs]]
        defaults = [None] * (len(names) - len(written.defaults) - len(written.kw_defaults))
        for name, default in zip(names, [*defaults, *written.defaults, *written.kw_defaults], strict=True):
            parameter = inspect.signature(part).parameters[name]
            assert (default is None) == (parameter.default is parameter.empty)
            if isinstance(parameter.default, bool | int | float | str):
                assert eval(ast.unparse(default)) == parameter.default  # may be an expression, such as 1 / 3


@pytest.mark.parametrize("paper", RECORDS)
def test_tests_are_there_and_name_a_part(paper):
    names = [path.rsplit(".", 1)[1] for path in paper.parts]
    for path in paper.tests:
        text = (ROOT / path).read_text()
        assert any(name in text for name in names), f"{path} names none of {names}"


@pytest.mark.parametrize("paper", RECORDS)
def test_is_told_apart(paper):
    assert paper.comparisons, "no experiment"
    assert 1950 < paper.year < 2100
    assert paper.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)
    assert len(paper.changes) <= 120
    assert not paper.changes.endswith(".")


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_experiment_names_this_baseline(comparison):
    text = find_config(f"experiment/{comparison.experiment}").read_text()
    assert f"Baseline: experiment/{comparison.baseline}.yaml" in text
    assert find_config(f"experiment/{comparison.baseline}")


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_evidence_is_of_this_experiment(comparison):
    report = read_evidence(comparison.evidence)
    assert report["baseline"]["name"] == comparison.baseline
    assert [arm["name"] for arm in report["methods"]] == [comparison.experiment]
    assert (report["metric"], report["mode"]) == (comparison.metric, comparison.mode)
    assert report["settings"] == []
    assert report["methods"][0]["difference"]["n"] == report["seeds"] >= 5
    assert report["methods"][0]["changes"]


def test_all_evidence_belongs_to_a_record():
    named = [comparison.evidence for paper in read_papers() for comparison in paper.comparisons]
    assert sorted(named) == evidence_slugs()
