import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from scipy.special import rel_entr, softmax

from leyden.callbacks import InitialWeights, SoupReference
from leyden.core import Outputs
from leyden.data import Digits
from leyden.losses import ExpectedReward
from leyden.methods import Classification
from leyden.models import MLP
from leyden.weights import pack_weights

NETWORK = partial(MLP, 64, 10, (6,))


@pytest.fixture
def files(tmp_path):
    """Weights of two policies, and their files."""
    policies, paths = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        policies.append(NETWORK())
        paths.append(str(tmp_path / f"{seed}.safetensors"))
        (tmp_path / f"{seed}.safetensors").write_bytes(pack_weights(policies[-1].state_dict()))
    return policies, paths


def built(paths, **knobs):
    torch.manual_seed(2)
    method, callback = Classification(NETWORK(), loss=ExpectedReward()), SoupReference(paths, **knobs)
    callback.build(method)
    return method, callback


def penalty(callback, policy, x):
    outputs = Outputs(logits=policy(x))
    return callback.loss_terms(None, {"input": x}, outputs, {})["reference_kl"]


X = torch.rand(5, 64, generator=torch.Generator().manual_seed(3))


def test_penalty_against_scipy(files):
    policies, paths = files
    method, callback = built(paths, weights=[1.0, 3.0], kl_weight=0.5)
    soup = NETWORK()
    soup.load_state_dict(
        {
            name: 0.25 * tensor + 0.75 * policies[1].state_dict()[name]
            for name, tensor in policies[0].state_dict().items()
        }
    )
    ours, reference = (softmax(p(X).detach().double().numpy(), axis=1) for p in (policies[0], soup))
    expected = 0.5 * rel_entr(ours, reference).sum(1).mean()
    assert penalty(callback, policies[0], X).item() == pytest.approx(expected, rel=1e-4)
    assert not any(name.startswith("frozen") or "reference" in name for name in method.state_dict())
    assert not any(p.requires_grad for p in callback.reference.parameters())


def test_the_order_of_the_files_does_not_matter(files):
    policies, (one, other) = files
    there = built([one, other], weights=[1.0, 3.0])[1]
    back = built([other, one], weights=[3.0, 1.0])[1]
    torch.testing.assert_close(penalty(there, policies[0], X), penalty(back, policies[0], X))


def test_no_penalty_and_no_gradient_at_the_reference(files):
    policies, (path, _) = files
    callback = built([path, path, path])[1]
    policy = copy.deepcopy(policies[0])
    loss = penalty(callback, policy, X)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(p.grad.abs().max() < 1e-6 for p in policy.parameters())


def fit(folder, *callbacks):
    torch.manual_seed(0)
    method = Classification(NETWORK(), loss=ExpectedReward(), optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(method, Digits(num_train=32, batch_size=8, seed=0))
    return method.network.state_dict()


def test_a_soup_of_one_is_an_ordinary_reference(files, tmp_path):
    policies, (one, other) = files
    soup = fit(tmp_path, InitialWeights(one), SoupReference([one, other], weights=[1.0, 0.0], kl_weight=1.0))
    plain = fit(tmp_path, InitialWeights(one), SoupReference(one, kl_weight=1.0))
    assert all(torch.equal(soup[name], tensor) for name, tensor in plain.items())
    both = fit(tmp_path, InitialWeights(one), SoupReference([one, other], kl_weight=1.0))
    assert not torch.equal(both["head.weight"], plain["head.weight"])
    free = fit(tmp_path, InitialWeights(one), SoupReference([one, other], kl_weight=0.0))
    held = fit(tmp_path, InitialWeights(one), SoupReference(one, kl_weight=3.0))
    start = policies[0].state_dict()["head.weight"]
    assert (held["head.weight"] - start).norm() < (free["head.weight"] - start).norm()


def test_bad_input(files, tmp_path):
    paths = files[1]
    with pytest.raises(ValueError, match="checkpoints must be at least one file"):
        SoupReference([])
    with pytest.raises(ValueError, match="weights must be 2, one per checkpoint, got 1"):
        SoupReference(paths, weights=[1.0])
    with pytest.raises(ValueError, match="kl_weight must be at least 0, got -1"):
        SoupReference(paths, kl_weight=-1.0)
    with pytest.raises(ValueError, match="weights must be at least 0"):
        built(paths, weights=[2.0, -1.0])
    with pytest.raises(FileNotFoundError):
        built([str(tmp_path / "none.safetensors")])
    method = Classification(MLP(64, 10, (7,)))
    with pytest.raises(ValueError, match=r"do not fit the network: .*size mismatch for body.0.weight"):
        SoupReference(paths).build(method)
