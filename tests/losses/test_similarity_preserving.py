"""Similarities between samples against numpy."""

import numpy as np
import pytest
import torch

from leyden.losses import SimilarityPreserving, similarity_preserving_loss


def test_numpy():
    student = torch.sin(torch.arange(24, dtype=torch.float64)).view(4, 2, 3)
    teacher = torch.cos(torch.arange(20, dtype=torch.float64)).view(4, 5)
    grams = []
    for side in (student, teacher):
        rows = side.numpy().reshape(4, -1)
        gram = rows @ rows.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    wanted = np.linalg.norm(grams[0] - grams[1], "fro") ** 2 / 16
    assert similarity_preserving_loss(student, teacher).item() == pytest.approx(wanted)


def test_turns_and_scales_do_not_matter():
    x = torch.rand(5, 3, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.rand(3, 3, dtype=torch.float64))
    assert SimilarityPreserving()(x, 3.0 * x @ turn).item() == pytest.approx(0.0, abs=1e-12)


def test_autocast_does_not_reach_the_products():
    student, teacher = 300.0 * torch.rand(4, 200), torch.rand(4, 50)
    wanted = similarity_preserving_loss(student, teacher)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(similarity_preserving_loss(student, teacher), wanted)


def test_errors():
    with pytest.raises(ValueError, match=r"must be \[N, ...\] of the same N, got \(2, 3\) and \(3, 3\)"):
        similarity_preserving_loss(torch.rand(2, 3), torch.rand(3, 3))
