import pytest

from leyden.catalog import evidence, papers
from leyden.catalog.evidence import read_evidence, write_evidence
from leyden.catalog.papers import paper_slugs, read_paper, search
from leyden.catalog.parts import describe_part

RECORD = """\
title: A Title
authors: A. Author
year: 2031
family: weights
changes: nothing at all
parts: [leyden.nn.Part, leyden.losses.part_loss]
comparisons:
  - {experiment: weights/part, baseline: weights/plain, metric: test/accuracy, mode: max, evidence: part}
tests: [tests/nn/test_part.py]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    (tmp_path / "part.yaml").write_text(RECORD)
    (tmp_path / "other.yaml").write_text(RECORD.replace("weights\n", "batch\n").replace("nn.Part", "optim.Part"))
    return tmp_path


def test_read(folder):
    paper = read_paper("part")
    assert (paper.slug, paper.year, paper.rooms, paper.arxiv) == ("part", 2031, ["losses", "nn"], None)
    assert paper.comparisons[0].baseline == "weights/plain"


def test_search(folder):
    def slugs(*words, **choice):
        return [paper.slug for paper in search(list(words), **choice)]

    assert paper_slugs() == ["other", "part"]
    assert slugs() == ["other", "part"]  # by family
    assert slugs(room="nn") == ["part"]
    assert slugs("TITLE", "2031", family="batch") == ["other"]
    assert slugs("title", "2032") == []


def test_bad_input(folder):
    with pytest.raises(ValueError, match="there is no paper 'prat' in the catalog; did you mean part"):
        read_paper("prat")
    with pytest.raises(ValueError, match="'leyden papers' lists all"):
        read_paper("xyz")
    with pytest.raises(ValueError, match="no paper has the family 'bacth'; there are: batch, weights"):
        search([], family="bacth")
    with pytest.raises(ValueError, match="no paper has the room 'data'; there are: losses, nn, optim"):
        search([], room="data")
    (folder / "part.yaml").write_text(RECORD + "color: red\n")
    with pytest.raises(ValueError, match=r"part\.yaml: 'color' is no key of a Paper"):
        read_paper("part")
    (folder / "part.yaml").write_text(RECORD.replace("year: 2031\n", ""))
    with pytest.raises(ValueError, match=r"part\.yaml: missing 1 required positional argument: 'year'"):
        read_paper("part")


def test_evidence_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="there is no evidence 'part'; there are: none yet"):
        read_evidence("part")
    path = write_evidence("part", {"metric": "test/loss"})
    assert read_evidence("part") == {"format": 1, "slug": "part", "metric": "test/loss"}
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="in format 0, not 1: record it again"):
        read_evidence("part")


def test_parts_are_read_from_their_source():
    part = describe_part("leyden.callbacks.EMA")
    assert part.signature.startswith("EMA(decay: float=0.999, *, warmup: bool=False")
    assert part.summary.startswith("Keeps an average of the weights")
    assert describe_part("leyden.losses.elr_loss").signature.startswith("elr_loss(")
    with pytest.raises(ValueError, match="the room nn does not export 'Nothing'"):
        describe_part("leyden.nn.Nothing")
