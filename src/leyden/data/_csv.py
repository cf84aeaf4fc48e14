"""Columns of CSV files."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_numbers", "is_missing", "read_csv"]

_MISSING = {"", "?", "na", "n/a", "nan", "null", "none"}


def read_csv(path: str, delimiter: str) -> dict[str, list[str]]:
    """Returns the fields of each column, by the names of the header line.

    Raises:
        ValueError: there is no such file, it has no rows, or they do not fit the header.
    """
    if not Path(path).is_file():
        raise ValueError(f"path must name a CSV file, but there is no file {path}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        rows = []
        for row in reader:
            if not row:
                continue  # an empty line
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} of {path} has {len(row)} fields, the header has {len(header)}"
                )
            rows.append([field.strip() for field in row])
    if len(set(header)) != len(header):
        raise ValueError(f"{path} has two columns of one name in its header: {', '.join(header)}")
    if not rows:
        raise ValueError(f"{path} must have a header line and at least one row")
    return {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}


def is_missing(text: str) -> bool:
    """Whether a field stands for a missing value."""
    return text.lower() in _MISSING


def as_numbers(texts: list[str]) -> NDArray[np.float64] | None:
    """Returns a column as numbers, NaN where missing; None if there is another text."""
    try:
        return np.array([np.nan if is_missing(text) else float(text) for text in texts])
    except ValueError:
        return None
