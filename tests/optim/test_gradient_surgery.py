import itertools

import pytest
import torch

from leyden.optim import cagrad, flat_task_gradient, imtl_g, pcgrad

TWO = torch.tensor([[1.0, 2.0, -1.0, 0.5], [-2.0, 0.5, 1.5, 1.0]], dtype=torch.float64)
THREE = torch.cat([TWO, torch.tensor([[0.3, -1.0, 0.7, 2.0]], dtype=torch.float64)])
AGREEING = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [0.0, 3.0, 1.0]])
CLOSE = {"rtol": 1e-6, "atol": 1e-9}

# What the authors' multi-mnist/mtl.py gives (VietHoang1512/FS-MTL, commit 1371ec5); its solver for CAGrad stops early.
PCGRAD_TWO = [-1.2133333333333334, 3.2733333333333334, 0.58, 1.9266666666666665]
PCGRAD_THREE = [  # by the random order
    [-0.6420215053763441, 2.563627240143369, 1.1663942652329748, 4.354078853046595],
    [-0.4835985663082436, 2.437820788530466, 1.1337777777777776, 4.475225806451613],
]
CAGRAD = {
    (2, 0.4): [-0.47270141708489116, 1.5614827617155447, 0.19415857309763257, 0.8778206674065886],
    (2, 0.5): [-0.4710930283910425, 1.556202931304453, 0.19349425193698275, 0.874848591620718],
    (3, 0.5): [0.010894516412923693, 0.753685022660251, 0.2105822720562091, 1.273910932698937],
}
IMTL_TWO = [-0.43167672515498356, 1.2841616374225082, 0.19306393762915297, 0.7386127875258306]
IMTL_THREE = [-0.05292194034235806, 0.6987491191165304, 0.20391874913890506, 1.0799370692339156]


def expect(found, expected, **tolerance):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), **tolerance or CLOSE)


def test_numbers_of_the_authors():
    expect(pcgrad(TWO), PCGRAD_TWO)
    expect(imtl_g(TWO), IMTL_TWO)
    expect(imtl_g(THREE), IMTL_THREE)
    for (num_tasks, alpha), expected in CAGRAD.items():
        expect(cagrad(THREE[:num_tasks], alpha=alpha), expected, rtol=2e-3, atol=2e-3)


def test_pcgrad_in_all_orders():
    found = [pcgrad(THREE, torch.Generator().manual_seed(seed)) for seed in range(30)]
    for expected in PCGRAD_THREE:
        assert any(torch.allclose(one, torch.tensor(expected, dtype=torch.float64), **CLOSE) for one in found)
    assert torch.equal(pcgrad(THREE, torch.Generator().manual_seed(3)), found[3])
    assert len({tuple(one.tolist()) for one in found}) <= 8  # two orders for each of three gradients


def test_pcgrad_of_gradients_that_agree_is_their_sum():
    torch.testing.assert_close(pcgrad(AGREEING), AGREEING.sum(0))


def test_cagrad_improves_the_worst_task_most():
    found = (1.0 + 0.4**2) * cagrad(THREE, alpha=0.4)
    mean = THREE.mean(0)
    assert (found - mean).norm().item() == pytest.approx(0.4 * mean.norm().item(), rel=1e-6)
    directions = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = mean + 0.4 * mean.norm() * directions / directions.norm(dim=1, keepdim=True)
    assert (THREE @ found).min() >= (others @ THREE.T).amin(1).max()
    torch.testing.assert_close(cagrad(THREE, alpha=0.0), mean)


def test_imtl_has_equal_projections_and_weights_that_sum_to_one():
    found = imtl_g(THREE)
    projections = THREE @ found / THREE.norm(dim=1)
    expect(projections, [projections[0].item()] * 3)
    weights = torch.linalg.lstsq(THREE.T, found).solution
    assert weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("aggregate", [pcgrad, cagrad, imtl_g])
def test_what_all_keep(aggregate):
    torch.testing.assert_close(aggregate(THREE[:1]), THREE[0])
    torch.testing.assert_close(
        aggregate(torch.stack([TWO[0], TWO[0]])) / TWO[0], torch.ones(4).double() * _size(aggregate)
    )
    assert aggregate(torch.zeros(3, 4)).tolist() == [0.0] * 4
    for scale in (1e-6, 1e6):  # float32
        torch.testing.assert_close(aggregate(scale * TWO.float()), scale * aggregate(TWO).float(), rtol=1e-3, atol=0.0)
    shuffled = [aggregate(TWO[list(order)]) for order in itertools.permutations(range(2))]
    torch.testing.assert_close(*shuffled)
    for grads in (torch.zeros(4), torch.zeros(0, 4), torch.zeros(2, 2, 2)):
        with pytest.raises(ValueError, match="grads must be one row per task"):
            aggregate(grads)


def _size(aggregate):
    """Of the result for two equal gradients, in units of one."""
    return {pcgrad: 2.0, imtl_g: 1.0, cagrad: 1.5 / 1.25}[aggregate]


def test_flat_gradient_aggregates_each_kind_by_itself():
    sam = TWO + torch.tensor([[0.1, 0.0, 0.0, 0.2], [-0.1, 0.0, 0.0, 0.2]], dtype=torch.float64)
    # the parts towards flatness have the product 0.03 and do not conflict
    expect(flat_task_gradient(TWO, sam), [*PCGRAD_TWO[:3], PCGRAD_TWO[3] + 0.4])
    expect(flat_task_gradient(TWO, TWO), PCGRAD_TWO)
    torch.testing.assert_close(
        flat_task_gradient(TWO, sam, aggregate=lambda grads: grads.mean(0)), sam.mean(0), rtol=1e-12, atol=0.0
    )


def test_bad_radius():
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\), got 1.0"):
        cagrad(TWO, alpha=1.0)
