"""What holds for every optimizer."""

import copy
import importlib
import io
from functools import partial

import pytest
import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.nn import Parameter

from leyden.optim import SPAM, AdaGradNorm, AdamR, Lamb, Lars, Root, Sophia, StableSPAM, _common

OPTIMIZERS = {
    "adagrad_norm": partial(AdaGradNorm, lr=0.5, momentum=0.5, weight_decay=0.1),
    "adagrad_norm_row": partial(AdaGradNorm, lr=0.5, weight_decay=0.1, granularity="row"),
    "adam_r": partial(AdamR, lr=0.02, weight_decay=0.1),
    "lamb": partial(Lamb, lr=0.02, weight_decay=0.1),
    "lars": partial(Lars, lr=3.0, weight_decay=0.1, nesterov=True),
    "root": partial(Root, lr=0.02),
    "sophia": partial(Sophia, lr=0.02),
    "spam": partial(
        SPAM, lr=0.02, weight_decay=0.1, threshold=2.0, reset_interval=8, warmup_steps=3, accumulate_steps=2
    ),
    "stable_spam": partial(StableSPAM, lr=0.02, weight_decay=0.1, reset_interval=7, total_steps=20),
}
SHAPES = [(5, 3), (1, 2, 3, 3), (1,), (), (4, 4)]  # the last one stays zero for a while
STEPS = 22


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def parameters(dtype=torch.float32):
    params = [Parameter(tensor) for tensor in tensors(0, dtype)]
    params[-1].data.zero_()
    return params


def train(optimizer, params, steps):
    """Steps of given numbers; with a spike now and then, and a parameter that has no gradient in some."""
    for step in steps:
        for number, (p, grad) in enumerate(zip(params, tensors(1 + step, params[0].dtype), strict=True)):
            p.grad = grad * (100.0 if step % 9 == 8 else 1.0) if number != 2 or step % 3 else None
        optimizer.step()
        if isinstance(optimizer, Sophia) and step % 4 == 3:
            optimizer.update_hessian(batch_size=2)
    return [p.detach() for p in params]


def run(make, dtype=torch.float32, steps=STEPS):
    params = parameters(dtype)
    return train(make(params), params, range(steps))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_both_forms_agree(make, dtype, tolerance, force_foreach):
    loop = run(make, dtype)
    force_foreach()
    torch.testing.assert_close(run(make, dtype), loop, rtol=tolerance, atol=tolerance)
    assert all(not torch.equal(before, after) for before, after in zip(parameters(dtype), loop, strict=True))


def test_goes_on_with_the_same_bits_after_any_step(make, form):
    whole = run(make)
    for cut in range(1, STEPS):
        params = parameters()
        optimizer = make(params)
        train(optimizer, params, range(cut))
        file = io.BytesIO()
        torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        params = [Parameter(tensor) for tensor in saved["params"]]
        optimizer = make(params)
        optimizer.load_state_dict(saved["optimizer"])
        assert all(map(torch.equal, train(optimizer, params, range(cut, STEPS)), whole)), cut


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_on_too_and_follows_single(make, dtype):
    params = parameters(dtype)
    optimizer = make(params)
    train(optimizer, params, range(10))
    others = [Parameter(p.detach().clone()) for p in params]
    other = make(others)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(map(torch.equal, train(optimizer, params, range(10, 14)), train(other, others, range(10, 14))))
    single = run(make, steps=14)
    for p, expected in zip(params, single, strict=True):
        assert (p.float() - expected).norm() < 0.1 * (expected - expected.mean()).norm() + 0.1


def test_layout_in_memory_does_not_matter(make):
    contiguous = run(make)
    params = parameters()
    params[0] = Parameter(params[0].detach().t().contiguous().t())  # its gradients are not transposed
    params[1] = Parameter(params[1].detach().to(memory_format=torch.channels_last))
    params[4] = Parameter(torch.zeros(4, 8)[:, ::2])  # with gaps
    torch.testing.assert_close(train(make(params), params, range(STEPS)), contiguous, rtol=2e-5, atol=2e-5)


def test_large_tensors_in_pieces(make, monkeypatch):
    whole = run(make)
    monkeypatch.setattr(_common, "_PIECE", 2)
    torch.testing.assert_close(run(make), whole, rtol=2e-5, atol=2e-5)


def test_gradients_are_only_read_and_groups_have_their_own_rate(make, form):
    params = parameters()
    optimizer = make([{"params": params[:2], "lr": 0.0, "weight_decay": 0.0}, {"params": params[2:]}])
    for step in range(STEPS):
        grads = [100.0 * grad if step % 5 == 4 else grad for grad in tensors(step)]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))
    before = parameters()
    assert all(torch.equal(p, old) for p, old in zip(params[:2], before[:2], strict=True))
    assert all(not torch.equal(p, old) for p, old in zip(params[2:], before[2:], strict=True))


def test_closure_runs_with_gradients(make):
    params = parameters()[:-1]
    optimizer = make(params)

    def closure():
        optimizer.zero_grad()
        loss = sum((p - 3.0).square().sum() for p in params)
        loss.backward()
        return loss

    first = closure().item()
    assert optimizer.step(closure).item() == first
    assert optimizer.step(closure).item() < first


def test_nothing_to_do(make):
    params = parameters()
    make(params).step()
    assert all(map(torch.equal, params, parameters()))


def test_sparse_and_complex_are_refused(make):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        make(embedding.parameters()).step()
    p = Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="does not support complex parameters"):
        make([p]).step()


@pytest.mark.parametrize("make_bad", [Lamb, Lars, Root, Sophia, SPAM, StableSPAM])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_negative_settings_are_refused(make_bad, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -0.1"):
        make_bad(parameters(), **{name: -0.1})


@pytest.mark.parametrize("make_bad", [Lamb, Sophia, SPAM, StableSPAM])
@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9)])
def test_bad_betas_are_refused(make_bad, betas):
    with pytest.raises(ValueError, match=r"betas must be 2 numbers in \[0, 1\), got"):
        make_bad(parameters(), betas=betas)


def train_whole_or_shared(name, mesh=None):
    """Steps of parameters that are whole, or shared row by row by two processes."""
    params = [p for p in parameters() if p.ndim]
    share = (lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])) if mesh else (lambda tensor: tensor)
    params = [Parameter(share(p.detach())) for p in params]
    optimizer = OPTIMIZERS[name](params)
    for step in range(STEPS):
        grads = [grad for grad in tensors(1 + step) if grad.ndim]
        for p, grad in zip(params, grads, strict=True):
            p.grad = share(grad * (100.0 if step % 9 == 8 else 1.0))
        optimizer.step()
    return [p.detach() for p in params]


def train_shared():
    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for name in OPTIMIZERS:
        module = importlib.import_module(OPTIMIZERS[name].func.__module__)
        for form in (module.is_loop_faster, lambda *lists: False):
            module.is_loop_faster = form
            params = train_whole_or_shared(name, mesh)
            assert all(isinstance(p, DTensor) for p in params)
            results.setdefault(name, []).append([p.full_tensor() for p in params])
    return results


def test_shared_tensors_end_as_whole_ones(run_processes):
    for results in run_processes(train_shared, 2):
        for name, forms in results.items():
            for params in forms:
                torch.testing.assert_close(params, train_whole_or_shared(name), rtol=2e-5, atol=2e-5)
