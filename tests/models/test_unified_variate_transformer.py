import pytest
import torch

from leyden.models import UnifiedVariateTransformer

X = torch.randn(4, 24, 3, generator=torch.Generator().manual_seed(0))


def make(**arguments):
    torch.manual_seed(0)
    return UnifiedVariateTransformer(3, horizon=5, dim=8, depth=1, num_heads=2, dropout=0.0, **arguments)


def test_convolutions_of_the_authors_code():
    """Muyiiiii/CRIB at 6606f65: ``TCNBlock(2, [4, 2], 3, 0.0)`` in float64, weights and biases set to sin(0), sin(1),
    ... in the order conv1, conv2, downsample of each block; the gains of its weight norm are the weights' norms.
    """
    embedding = UnifiedVariateTransformer(1, patch_length=2, dim=2, num_heads=1, dropout=0.0).double().embedding
    start = 0
    for p in embedding.parameters():
        p.data = torch.arange(start, start + p.numel(), dtype=torch.float64).sin().view_as(p)
        start += p.numel()
    found = embedding(torch.arange(1, 9, dtype=torch.float64).cos().view(1, 2, 1, 4))
    expected = [4.54494621789892, 3.680170419168221, 3.003544346548591, 3.949435077138678]
    expected += [-2.868748404092406, -2.629457774053237, -1.914680929888218, -3.091520471874104]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_a_patch_sees_those_before_it_of_its_variate():
    embedding = make().embedding
    patches = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))  # [N, L, V, P]
    changed = patches.clone()
    changed[0, :, 1, 1] += 1.0
    moved = (embedding(changed) - embedding(patches)).abs().amax((0, 1)) > 1e-6  # [V, P]
    assert moved.tolist() == [[False] * 3, [False, True, True], [False] * 3]


@torch.no_grad()
def test_forecasts_follow_shift_and_scale_of_a_variate():
    network = make().eval()
    shift, scale = torch.tensor([5.0, 0.0, -2.0]), torch.tensor([10.0, 1.0, 0.5])
    found, plain = network(scale * X + shift), network(X)
    assert plain.shape == (4, 5, 3)
    torch.testing.assert_close(found, scale * plain + shift, rtol=1e-3, atol=1e-3)  # up to the 1e-5 under the root


@torch.no_grad()
def test_features_end_with_mean_and_scale():
    features = make().features(X)
    assert features.shape == (4, 3, 26)
    torch.testing.assert_close(features[..., -2], X.mean(1))
    torch.testing.assert_close(features[..., -1], (X.var(1, correction=0) + 1e-5).sqrt())


@torch.no_grad()
def test_all_variates_see_each_other():
    network = make().eval()
    changed = X.clone()
    changed[:, 0, 1] += 3.0
    assert ((network(changed) - network(X)).abs().amax((0, 1)) > 1e-6).all()


def test_constant_windows_have_finite_gradients():
    network = make()
    network(torch.zeros_like(X)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="input_length must be a multiple of patch_length, got 24 with patch_length=7"):
        make(patch_length=7)
    with pytest.raises(ValueError, match="num_variates must be 1 or more, got 0"):
        UnifiedVariateTransformer(0)
    with pytest.raises(ValueError, match=r"x must have shape \[N, 24, 3\], got \(4, 24, 2\)"):
        make()(X[..., :2])
