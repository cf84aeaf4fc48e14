"""The catalog: one record per paper, from the paper to its parts, its experiments and what they showed.

Reading it imports neither torch nor the parts.
"""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

__all__ = ["FOLDER", "Comparison", "Paper", "paper_slugs", "read_paper", "read_papers", "search"]

FOLDER = Path(__file__).parent / "papers"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


@dataclass(frozen=True)
class Comparison:
    """An experiment, the baseline that it is measured against, and the recorded result.

    Attributes:
        experiment: name below ``configs/experiment/``.
        baseline: likewise.
        metric: that is compared.
        mode: ``"max"`` or ``"min"``: what is better.
        evidence: name of the recorded comparison; None before there is one.
    """

    experiment: str
    baseline: str
    metric: str
    mode: str
    evidence: str | None = None


@dataclass(frozen=True)
class Paper:
    """The record of a paper.

    Attributes:
        slug: short name: that of the file.
        title: of the paper.
        authors: of the paper.
        year: of the paper.
        family: kind of methods, as the folders of ``configs/experiment/``.
        changes: one line that says what the method changes in training.
        parts: import paths.
        comparisons: experiments with their baselines.
        tests: files that check the parts.
        arxiv: number, if it is there.
        code: GitHub repository of the authors, if there is one.
        notes: where the parts leave the paper, or what to know before use.
    """

    slug: str
    title: str
    authors: str
    year: int
    family: str
    changes: str
    parts: list[str]
    comparisons: list[Comparison]
    tests: list[str]
    arxiv: str | None = None
    code: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def rooms(self) -> list[str]:
        """Rooms of the parts."""
        return sorted({part.split(".")[1] for part in self.parts})


def paper_slugs() -> list[str]:
    """Short names of all papers."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_paper(slug: str) -> Paper:
    """Reads a record.

    Args:
        slug: short name of the paper.

    Raises:
        ValueError: there is none of this name, or it has other keys than a record.
    """
    path = FOLDER / f"{slug}.yaml"
    if slug not in paper_slugs():
        near = get_close_matches(slug.lower(), paper_slugs(), n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(near)}?" if near else "'leyden papers' lists all"
        raise ValueError(f"there is no paper {slug!r} in the catalog; {advice}")
    content = yaml.load(path.read_text(), _Loader)
    comparisons = [_make(Comparison, item, path) for item in content.pop("comparisons", [])]
    return _make(Paper, {"slug": slug, "comparisons": comparisons} | content, path)


def read_papers() -> list[Paper]:
    """Reads all records, by family and name."""
    return sorted(map(read_paper, paper_slugs()), key=lambda paper: (paper.family, paper.slug))


def search(words: list[str], *, family: str | None = None, room: str | None = None) -> list[Paper]:
    """Finds papers.

    Args:
        words: each must stand somewhere in the record.
        family: of the papers.
        room: that has one of the parts.

    Raises:
        ValueError: no paper is of this family, or has a part in this room.
    """
    papers = read_papers()
    for name, value, known in (
        ("family", family, {paper.family for paper in papers}),
        ("room", room, {place for paper in papers for place in paper.rooms}),
    ):
        if value is not None and value not in known:
            raise ValueError(f"no paper has the {name} {value!r}; there are: {', '.join(sorted(known))}")
    return [
        paper
        for paper in papers
        if family in (None, paper.family)
        and (room is None or room in paper.rooms)
        and all(word.lower() in _text(paper) for word in words)
    ]


def _text(paper: Paper) -> str:
    words = [paper.slug, paper.title, paper.authors, str(paper.year), paper.family, paper.changes, *paper.parts]
    return " ".join([*words, paper.arxiv or "", *paper.notes]).lower()


def _make(kind: type, content: dict[str, Any], path: Path) -> Any:
    known = {item.name for item in fields(kind)}
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"{path.name}: {unknown[0]!r} is no key of a {kind.__name__}; there are: {sorted(known)}")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"{path.name}: {str(error).split('() ')[-1]}") from error
