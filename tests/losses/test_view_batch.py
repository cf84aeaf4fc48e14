import pytest
import torch

from leyden.losses import ViewBatchLoss, view_batch_loss

LOGITS = (torch.arange(18.0) ** 2 / 10).sin().view(6, 3) * 2
GROUP = torch.tensor([7, 7, 7, 2, 2, 9])


def test_loss_and_gradient_of_the_authors():
    # printed by the loop in models/icarl.py of hankyul2/ViewBatchModel, whose mean is over the 3 classes too
    logits = LOGITS.clone().requires_grad_()
    loss = view_batch_loss(logits, GROUP)
    torch.testing.assert_close(loss, torch.tensor(3 * 0.07307898))
    loss.backward()
    gradient = [[0, 0, 0], [0.0091252, 0.0221463, -0.0312714], [0.0000065, -0.0222546, 0.0222481]]
    gradient += [[0, 0, 0], [-0.0304820, -0.0032804, 0.0337625], [0, 0, 0]]
    torch.testing.assert_close(logits.grad / 3, torch.tensor(gradient), rtol=1e-4, atol=1e-7)


def test_views_need_not_be_neighbours():
    order = torch.tensor([0, 3, 5, 1, 4, 2])
    torch.testing.assert_close(view_batch_loss(LOGITS[order], GROUP[order]), view_batch_loss(LOGITS, GROUP))


def test_by_hand():
    # KL of (1/2, 1/2) and (1/4, 3/4)
    logits = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]).log()
    expected = 0.5 * torch.tensor(4 / 3).log()
    torch.testing.assert_close(view_batch_loss(logits, torch.tensor([1, 1, 2])), expected)
    torch.testing.assert_close(
        view_batch_loss(logits[[0, 1, 1]], torch.tensor([4, 4, 4]), reduction="sum"), 2 * expected
    )
    half = view_batch_loss(logits.bfloat16(), torch.tensor([1, 1, 2]))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0)


def test_masked_classes_do_not_count():
    masked = torch.cat([LOGITS, torch.full((6, 1), -torch.inf)], 1).requires_grad_()
    plain = LOGITS.clone().requires_grad_()
    loss, expected = view_batch_loss(masked, GROUP), view_batch_loss(plain, GROUP)
    torch.testing.assert_close(loss, expected)
    [gradient], [reference] = torch.autograd.grad(loss, [masked]), torch.autograd.grad(expected, [plain])
    torch.testing.assert_close(gradient, torch.cat([reference, torch.zeros(6, 1)], 1))


@pytest.mark.parametrize("group", [[0, 1, 2, 3, 4, 5], [3] * 6])
def test_nothing_to_learn(group):
    logits = (LOGITS if group[0] == 0 else LOGITS[:1].repeat(6, 1)).clone().requires_grad_()
    loss = view_batch_loss(logits, torch.tensor(group))
    loss.backward()
    assert loss == 0
    torch.testing.assert_close(logits.grad, torch.zeros(6, 3), rtol=0, atol=1e-7)


def test_empty_batch():
    logits = torch.zeros(0, 3, requires_grad=True)
    view_batch_loss(logits, torch.zeros(0, dtype=torch.int64)).backward()
    assert logits.grad.shape == (0, 3)


def test_twin_and_bad_input():
    assert torch.equal(ViewBatchLoss(reduction="sum")(LOGITS, GROUP), view_batch_loss(LOGITS, GROUP, reduction="sum"))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        view_batch_loss(LOGITS, GROUP, reduction="none")
    for logits, group in ((LOGITS, GROUP[:3]), (LOGITS[0], GROUP)):
        with pytest.raises(ValueError, match=r"logits must be \[N, C\] and group \[N\], got shapes"):
            view_batch_loss(logits, group)
