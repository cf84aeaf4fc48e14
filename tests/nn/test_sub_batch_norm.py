import pytest
import torch
from torch import nn

from leyden.nn import SubBatchNorm1d, SubBatchNorm2d, SubBatchNorm3d, frozen_running_stats

LAYERS = [
    (SubBatchNorm1d, nn.BatchNorm1d, (12, 3)),
    (SubBatchNorm2d, nn.BatchNorm2d, (12, 3, 4, 4)),
    (SubBatchNorm3d, nn.BatchNorm3d, (12, 3, 2, 4, 4)),
]


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_outputs_of_the_authors():
    # printed by SubBatchNorm3d of slowfast/models/batchnorm_helper.py (facebookresearch/SlowFast) after a first batch
    layer = SubBatchNorm3d(2, num_splits=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.0, 0.5]))
    x = (torch.arange(16.0) ** 2 / 10).sin().view(4, 2, 1, 1, 2)
    trained = [-0.7579027, -0.5027707, 1.7303935, 3.1366425, 0.7497007, 0.2408304, 0.0569773, -1.7152262]
    trained += [-0.4600520, 1.7207254, -1.6019750, -1.2650609, 0.7066724, -1.6972034, 3.7478387, -0.0895897]
    torch.testing.assert_close(layer(x).flatten(), torch.tensor(trained))
    means, variances = (
        [[0.0296568, 0.0044769], [0.0408645, -0.0307546]],
        [[0.9204141, 0.9418457], [0.9828373, 0.9495038]],
    )
    torch.testing.assert_close(layer.running_mean, torch.tensor(means))
    torch.testing.assert_close(layer.running_var, torch.tensor(variances))
    evaluated = [-0.0361450, 0.0661922, 1.3277767, 2.1377690, 0.9884973, 0.5773365, -0.3829353, -1.4931957]
    evaluated += [0.0833273, 0.9580690, -0.5916510, -0.3975901, 0.9537310, -0.9885707, 1.9293368, -0.4747575]
    torch.testing.assert_close(layer.eval()(x).flatten(), torch.tensor(evaluated))


@pytest.mark.parametrize(("kind", "plain", "shape"), LAYERS)
def test_one_split_is_batch_norm(kind, plain, shape):
    ours, theirs = kind(3, num_splits=1), plain(3)
    for seed in range(2):
        torch.testing.assert_close(ours(random(shape, seed)), theirs(random(shape, seed)), rtol=0, atol=0)
    torch.testing.assert_close(ours.eval()(random(shape)), theirs.eval()(random(shape)))
    assert ours.num_batches_tracked == 2


@pytest.mark.parametrize(("kind", "plain", "shape"), LAYERS)
def test_splits_are_batch_norms_of_every_third_row(kind, plain, shape):
    layer, norms, x = kind(3, num_splits=3), [plain(3) for _ in range(3)], random(shape)
    output = layer(x)
    for number, norm in enumerate(norms):
        torch.testing.assert_close(output[number::3], norm(x[number::3]))
        torch.testing.assert_close(layer.running_mean[number], norm.running_mean)
        torch.testing.assert_close(layer.running_var[number], norm.running_var)


def test_without_affine_and_with_a_saved_state():
    layer = SubBatchNorm1d(3, num_splits=2, affine=False)
    layer(random((4, 3)))
    assert layer.state_dict().keys() == {"running_mean", "running_var", "num_batches_tracked"}
    fresh = SubBatchNorm1d(3, num_splits=2, affine=False)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(random((4, 3))), layer.eval()(random((4, 3))))


def test_second_passes_can_leave_the_statistics():
    layer, x = SubBatchNorm2d(3, num_splits=2), random((4, 3, 2, 2))
    output = layer(x)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with frozen_running_stats(layer):
        torch.testing.assert_close(layer(x), output)
        layer(x + 1.0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_bad_input():
    with pytest.raises(ValueError, match="num_splits must be at least 1, got 0"):
        SubBatchNorm2d(3, 0)
    with pytest.raises(ValueError, match=r"input must have a multiple of 4 \(num_splits\) rows, got 6"):
        SubBatchNorm2d(3, 4)(torch.zeros(6, 3, 2, 2))
    with pytest.raises(ValueError, match="expected 4D input"):
        SubBatchNorm2d(3, 2)(torch.zeros(4, 3))
