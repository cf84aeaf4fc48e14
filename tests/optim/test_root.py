import pytest
import torch
from torch.nn import Parameter

from leyden.optim import Root, adanewton_coefficients, newton_schulz, soft_threshold_split


def matrix(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- the split


def test_split_by_hand():
    # magnitudes 1, 2, 4, 8, 10: the quantile 0.75 is 8, that of 0.625 lies between 4 and 8
    g = torch.tensor([[4.0, -1.0, 10.0, -8.0, 2.0]], dtype=torch.float64)
    base, outlier = soft_threshold_split(g, 0.75)
    torch.testing.assert_close(base, torch.tensor([[4.0, -1.0, 8.0, -8.0, 2.0]]).double(), rtol=0.0, atol=1.1e-9)
    torch.testing.assert_close(outlier, torch.tensor([[0.0, 0.0, 2.0, 0.0, 0.0]]).double(), rtol=0.0, atol=1.1e-9)
    base, _ = soft_threshold_split(g, 0.625)
    torch.testing.assert_close(base, torch.tensor([[4.0, -1.0, 6.0, -6.0, 2.0]]).double(), rtol=0.0, atol=1.1e-9)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 0.999])
def test_split_adds_up_and_the_base_ends_at_the_quantile(quantile):
    g = matrix(23, 41)
    base, outlier = soft_threshold_split(g, quantile)
    limit = torch.quantile(g.abs(), quantile).item() + 1e-9  # another algorithm for the same number
    assert base.abs().max().item() == pytest.approx(limit, rel=1e-12)
    torch.testing.assert_close(base + outlier, g, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(outlier, g.sign() * (g.abs() - limit).clamp(min=0.0), rtol=1e-12, atol=1e-14)


def test_split_at_1_leaves_all():
    g = matrix(4, 5)
    base, outlier = soft_threshold_split(g, 1.0)
    assert torch.equal(base, g)
    assert not outlier.any()


# ---- the iteration


@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (30, 5), (1, 9)])
def test_singular_values_end_near_1_and_directions_stay(shape):
    g = matrix(*shape)
    x = newton_schulz(g)
    u, values, vh = torch.linalg.svd(g, full_matrices=False)
    kept = values > 0.02 * values[0]  # five iterations lift the very small ones only in part
    new = torch.diagonal(u.T @ x @ vh.T)
    assert new[kept].min() > 0.65
    assert new.max() < 1.25
    torch.testing.assert_close(u @ torch.diag(new) @ vh, x, rtol=1e-10, atol=1e-10)


def test_polynomial_of_singular_values():
    x = newton_schulz(torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64)), steps=2, coefficients=(2.0, -1.5, 0.5))
    values = torch.tensor([0.6, 0.8], dtype=torch.float64)
    for _ in range(2):
        values = 2.0 * values - 1.5 * values**3 + 0.5 * values**5
    torch.testing.assert_close(x, torch.diag(values), rtol=1e-6, atol=1e-12)


def test_coefficients_of_shapes():
    assert adanewton_coefficients((8192, 2048)) == adanewton_coefficients((2048, 8192)) == (2.9794, -3.6674, 1.6207)
    assert adanewton_coefficients((64, 256)) == (3.4445, -4.7750, 2.0315)


# ---- the optimizer

# ROOT of huawei-noah/noah-research at a99fb00 on float64 (its quantile, which is of float32, too), not compiled:
# lr=0.02, momentum=0.9, adamw_eps=0.01, 12 steps with the gradients of the test below
OF_THE_AUTHORS = {
    True: (
        [[0.48285171873627813, -0.9534816944277847, 0.22951515796821992],
         [1.9153313643836118, -0.14566129685913257, 1.4233623605449672]],
        [[0.47898074909948085, -0.9832072609718067],
         [0.22977237957760135, 1.9239678097944672],
         [-0.15507268163191454, 1.429291133080883]],
        [0.5041300270352236, -0.9367081314811594, 0.28845882373833087],
    ),
    False: (
        [[0.4844332832762603, -0.9568975096037713, 0.23565133128512655],
         [1.9114855671488924, -0.14487982857675258, 1.4243927665101113]],
        [[0.48296614817366856, -0.9858748314218404],
         [0.23621645318689724, 1.9191374409082504],
         [-0.16259483920832793, 1.4349750049972314]],
        [0.5041300270352236, -0.9367081314811594, 0.28845882373833087],
    ),
}  # fmt: skip


@pytest.mark.parametrize("nesterov", [True, False])
def test_numbers_of_the_authors_code(form, nesterov):
    start = torch.tensor([0.5, -1.0, 0.25, 2.0, -0.125, 1.5], dtype=torch.float64)
    params = [Parameter(p.clone()) for p in (start.view(2, 3), start.view(3, 2), start[:3])]
    optimizer = Root(params, lr=0.02, momentum=0.9, nesterov=nesterov, adamw_eps=0.01)
    k = torch.arange(1.0, 7.0, dtype=torch.float64)
    for t in range(1, 13):
        for number, p in enumerate(params[:2]):
            p.grad = (torch.sin(1.7 * t * k + number) + 0.1 * k).view(p.shape)
        if t == 7:
            params[0].grad[0, 1] *= 50.0
        params[2].grad = torch.cos(1.3 * t * k[:3])
        optimizer.step()
    for p, expected in zip(params, OF_THE_AUTHORS[nesterov], strict=True):
        torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_is_muon_without_clamping():
    start = [matrix(6, 9, dtype=torch.float32), matrix(9, 4, seed=1, dtype=torch.float32)]
    params, others = [Parameter(p.clone()) for p in start], [Parameter(p.clone()) for p in start]
    root = Root(params, lr=0.02, quantile=1.0)
    muon = torch.optim.Muon(others, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(10):
        for p, other in zip(params, others, strict=True):
            p.grad = matrix(*p.shape, seed=10 + step, dtype=torch.float32)
            other.grad = p.grad.clone()
        root.step()
        muon.step()
    for p, other, before in zip(params, others, start, strict=True):  # Muon iterates in bfloat16
        assert (p - other).norm() < 0.02 * (other - before).norm()


def test_scale_of_the_gradients_does_not_matter(form):
    ends = []
    for scale in (1.0, 1e4):
        p = Parameter(matrix(4, 7))
        optimizer = Root([p], lr=0.1)
        for step in range(5):
            p.grad = scale * matrix(4, 7, seed=1 + step)
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


def test_vectors_and_chosen_matrices_take_adamw(form):
    start = [matrix(3), matrix(4, 5)]
    params, others = [Parameter(p.clone()) for p in start], [Parameter(p.clone()) for p in start]
    root = Root([{"params": params, "orthogonalize": False}], lr=0.03, adamw_eps=1e-14)
    adamw = torch.optim.AdamW(others, lr=0.03, betas=(0.9, 0.95), eps=1e-14, weight_decay=0.1)
    for step in range(12):
        for p, other in zip(params, others, strict=True):
            p.grad = matrix(*p.shape, seed=20 + step)
            other.grad = p.grad.clone()
        root.step()
        adamw.step()
    torch.testing.assert_close(params, others, rtol=1e-10, atol=1e-10)


def test_tensors_of_more_dimensions_are_matrices_of_their_first(form):
    start = matrix(4, 2, 3, 3)
    kernel, flat = Parameter(start.clone()), Parameter(start.flatten(1).clone())
    optimizer = Root([kernel, flat], lr=0.1)
    for step in range(4):
        kernel.grad = matrix(4, 2, 3, 3, seed=5 + step)
        flat.grad = kernel.grad.flatten(1).clone()
        optimizer.step()
    assert torch.equal(kernel.flatten(1), flat)


def test_a_few_huge_entries_turn_the_step_less_than_that_of_muon():
    clean = matrix(32, 64)
    spoiled = clean.clone()
    spoiled.view(-1)[::100] *= 100.0
    turned = {}
    for quantile in (0.9, 1.0):
        steps = []
        for grad in (clean, spoiled):
            p = Parameter(torch.zeros(32, 64, dtype=torch.float64))
            p.grad = grad
            Root([p], lr=1.0, quantile=quantile).step()
            steps.append(p.detach().flatten())
        turned[quantile] = torch.nn.functional.cosine_similarity(*steps, dim=0)
    assert turned[0.9] > turned[1.0] + 0.3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"quantile": 1.5}, r"quantile must lie in \[0, 1\], got 1.5"),
        ({"ns_steps": 0}, "ns_steps must be at least 1, got 0"),
        ({"coefficients": (1.0, 2.0)}, "coefficients must be three numbers"),
        ({"adamw_betas": (0.9, 1.0)}, r"adamw_betas must be 2 numbers in \[0, 1\)"),
        ({"adamw_eps": -1.0}, "adamw_eps must be at least 0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        Root([Parameter(torch.zeros(1))], **arguments)


def test_bad_tensors():
    with pytest.raises(ValueError, match=r"g must be a matrix, \[M, N\], got shape \(2, 3, 4\)"):
        newton_schulz(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"g must not be empty, got shape \(0, 3\)"):
        soft_threshold_split(torch.zeros(0, 3), 0.9)
