"""Accuracy by domain: per task of a stream, per environment, per corruption."""

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["domain_accuracy"]


@torch.no_grad()
def domain_accuracy(method: Any, data: Any) -> Mapping[str, float]:
    """Tests a method on each domain of the test data; a function for stages that ``run: evaluate``.

    Args:
        method: called with ``input`` ``[N, ...]``, gives logits ``[N, C]``.
        data: DataModule whose test batches have ``input``, ``target`` and ``domain`` (int64 ``[N]`` each, from 0).

    Returns:
        ``accuracy/0``, ``accuracy/1``, ..., and their mean as ``accuracy/mean``, so that all domains count alike.

    Raises:
        ValueError: a batch has no ``domain``.
    """
    right: dict[int, int] = {}
    count: dict[int, int] = {}
    for batch in data.test_dataloader():
        if "domain" not in batch:
            raise ValueError(f"the test batches have no 'domain', only {', '.join(batch)}")
        device = next(method.parameters()).device
        hits = method(batch["input"].to(device)).argmax(-1).cpu() == batch["target"]
        for domain in batch["domain"].unique().tolist():
            here = batch["domain"] == domain
            right[domain] = right.get(domain, 0) + int(hits[here].sum())
            count[domain] = count.get(domain, 0) + int(here.sum())
    accuracy = {domain: right[domain] / count[domain] for domain in sorted(count)}
    named = {f"accuracy/{domain}": value for domain, value in accuracy.items()}
    return named | {"accuracy/mean": sum(accuracy.values()) / len(accuracy)}
