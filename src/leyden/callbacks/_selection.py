"""Batches of which only some samples are trained on."""

from torch import Tensor

from leyden.core import Batch, Method

__all__ = ["log_selection", "select_rows"]


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch, by position; what has no row per sample stays as it is."""
    size = len(batch["input"])
    return {key: value[rows] if value.shape[:1] == (size,) else value for key, value in batch.items()}


def log_selection(method: Method, name: str, **values: float | Tensor) -> None:
    """Logs what a selection notes, as ``train/<name>_<key>``, in steps that the logger writes."""
    if method._is_logged_step():
        method.log_dict({f"train/{name}_{key}": float(value) for key, value in values.items()})
