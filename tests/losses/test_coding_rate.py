import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from leyden.losses import (
    MCR2,
    coding_rate,
    compressed_coding_rate,
    doubly_stochastic_membership,
    mcr2_loss,
)

N, D, K = 30, 5, 4
GENERATOR = torch.Generator().manual_seed(0)
Z = normalize(torch.randn(N, D, generator=GENERATOR, dtype=torch.float64), dim=1)
P = torch.rand(N, K, generator=GENERATOR, dtype=torch.float64)
P = P / P.sum(1, keepdim=True)


def log_det(matrix: np.ndarray) -> float:
    return np.linalg.slogdet(np.eye(len(matrix)) + matrix)[1]


def test_values_against_numpy():
    z, p = Z.numpy(), P.numpy()
    rate = 0.5 * log_det(D / (N * 0.3) * z.T @ z)
    compressed = sum(
        p[:, k].sum() / (2 * N) * log_det(D / (p[:, k].sum() * 0.3) * z.T @ np.diag(p[:, k]) @ z) for k in range(K)
    )
    assert coding_rate(Z, eps=0.3).item() == pytest.approx(rate, rel=1e-12)
    assert compressed_coding_rate(Z, P, eps=0.3).item() == pytest.approx(compressed, rel=1e-7)
    assert mcr2_loss(Z, P, eps=0.3).item() == pytest.approx(compressed - rate, rel=1e-6)
    assert MCR2(eps=0.3)(Z, P).item() == mcr2_loss(Z, P, eps=0.3).item()


def test_numbers_of_the_authors():
    """Printed by ryanchankh/mcr2 (005c2f7), and by LeslieTrue/CPP, a later work of the second paper's authors."""
    z = normalize(torch.sin(1.7 * torch.arange(15.0, dtype=torch.float64)).view(5, 3), dim=1)
    shares = torch.tensor([0.7, 0.2, 1.0, 0.5, 0.1], dtype=torch.float64)
    assert coding_rate(z).item() == pytest.approx(1.381724771241967, rel=1e-6)
    compressed = compressed_coding_rate(z, torch.stack([shares, 1.0 - shares], 1))
    assert compressed.item() == pytest.approx(1.338766036597081, rel=1e-6)
    features = normalize(torch.cos(0.9 * torch.arange(10.0, dtype=torch.float64)).view(5, 2), dim=1)
    member = doubly_stochastic_membership(features, gamma=0.5, iterations=60)
    expected = [0.39775670521, 0.01616482521, 0.01090702339, 0.36564603393, 0.20952538218]
    assert member[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert mcr2_loss(z, member).item() == pytest.approx(-0.10509017034637402, rel=1e-5)


def test_orthogonal_clusters_by_hand():
    """Two clusters of two samples each along one axis: R = log(1 + D/4/eps * 2), Rc = 2 * 2/8 * log(1 + D/eps)."""
    z = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0)
    member = z.clone()
    assert coding_rate(z).item() == pytest.approx(np.log(3.0))
    assert compressed_coding_rate(z, member).item() == pytest.approx(0.5 * np.log(5.0))


def test_invariances():
    loss = mcr2_loss(Z, P)
    assert loss < 0.0
    torch.testing.assert_close(mcr2_loss(Z, P[:, [2, 0, 3, 1]]), loss)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=GENERATOR, dtype=torch.float64))[0]
    torch.testing.assert_close(mcr2_loss(Z @ rotation, P), loss)
    torch.testing.assert_close(mcr2_loss(Z, torch.ones(N, 1, dtype=torch.float64)).abs().item(), 0.0, atol=1e-9, rtol=0)
    order = torch.randperm(N, generator=GENERATOR)
    torch.testing.assert_close(mcr2_loss(Z[order], P[order]), loss)


def test_gradients_and_empty_clusters():
    z, p = Z[:6].clone().requires_grad_(), P[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(mcr2_loss, (z, p))
    empty = torch.cat([P, torch.zeros(N, 1, dtype=torch.float64)], 1).requires_grad_()
    loss = mcr2_loss(Z, empty)
    torch.testing.assert_close(loss, mcr2_loss(Z, P))
    [gradient] = torch.autograd.grad(loss, empty)
    assert gradient.isfinite().all()


def test_many_clusters_are_taken_in_parts(monkeypatch):
    whole = mcr2_loss(Z, P)
    monkeypatch.setattr(sys.modules[mcr2_loss.__module__], "MAX_NUMBERS", 2 * D * D)
    torch.testing.assert_close(mcr2_loss(Z, P), whole)


def test_half_precision_is_computed_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        loss = mcr2_loss(Z.float(), P.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mcr2_loss(Z.float(), P.float()))
    assert coding_rate(Z.bfloat16()).dtype == torch.float32


def test_membership_against_plain_sinkhorn():
    kernel = np.exp(Z.numpy() @ Z.numpy().T / 0.2)
    for _ in range(2000):
        kernel /= kernel.sum(1, keepdims=True)
        kernel /= kernel.sum(0, keepdims=True)
    shares = doubly_stochastic_membership(Z, gamma=0.2, iterations=60)
    np.testing.assert_allclose(shares.numpy(), kernel, atol=1e-9)
    few = doubly_stochastic_membership(Z, gamma=0.2)
    torch.testing.assert_close(few, few.T)
    torch.testing.assert_close(few.sum(1), torch.ones(N, dtype=torch.float64), atol=1e-4, rtol=0)
    z = Z[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: doubly_stochastic_membership(z, gamma=0.5), z)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coding_rate(Z[0]), r"z must be \[N, D\] with N of 1 or more, got \(5,\)"),
        (lambda: coding_rate(Z, eps=0.0), "eps must be positive, got 0.0"),
        (lambda: mcr2_loss(Z, P[:3]), r"membership must be \[N, K\] with N=30, got \(3, 4\)"),
        (lambda: doubly_stochastic_membership(Z[0]), r"features must be \[N, M\], got \(5,\)"),
        (
            lambda: doubly_stochastic_membership(Z, gamma=0.0),
            "gamma must be positive and iterations at least 1, got 0.0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
