"""The evidence store: what comparisons of a method with its baseline gave, one JSON file each."""

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "FORMAT", "evidence_slugs", "read_evidence", "verdict", "write_evidence"]

FORMAT = 1  # of the files; evidence in another one is made again
FOLDER = Path(__file__).parent / "evidence"


def evidence_slugs() -> list[str]:
    """Names of all evidence."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_evidence(slug: str) -> dict[str, Any]:
    """Reads one comparison.

    Args:
        slug: its name.

    Raises:
        ValueError: there is none, or it is in another format.
    """
    path = FOLDER / f"{slug}.json"
    if not path.is_file():
        raise ValueError(f"there is no evidence {slug!r}; there are: {', '.join(evidence_slugs()) or 'none yet'}")
    evidence = json.loads(path.read_text())
    if evidence.get("format") != FORMAT:
        raise ValueError(f"the evidence {slug!r} is in format {evidence.get('format')}, not {FORMAT}: record it again")
    return evidence


def write_evidence(slug: str, report: dict[str, Any]) -> Path:
    """Records a comparison; one of the same name is replaced.

    Args:
        slug: its name.
        report: what `leyden.cli.comparison.make_report` made.

    Returns:
        The file.
    """
    from leyden.core.replace_file import replace_file

    path = FOLDER / f"{slug}.json"
    with replace_file(path) as file:
        file.write((json.dumps({"format": FORMAT, "slug": slug} | report, indent=1) + "\n").encode())
    return path


def verdict(interval: tuple[float, float] | list[float] | None, mode: str) -> str:
    """Says in words what an interval of the difference, method minus baseline, shows.

    Args:
        interval: of the mean difference; None where there is only one pair.
        mode: ``"max"`` if more is better, ``"min"`` if less.
    """
    if interval is None:
        return "one seed shows nothing"
    low, high = interval if mode == "max" else (-interval[1], -interval[0])
    if low != 0.0 and math.isclose(low, high):  # a metric that counts few samples: the interval is no measure of chance
        return "the same difference in all seeds: too coarse to say"
    if low > 0.0:
        return "better"
    return "worse" if high < 0.0 else "no difference seen at this scale"
