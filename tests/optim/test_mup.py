import pytest
import torch

from leyden.models import GPT, MLP, ViT
from leyden.optim import mup_param_groups


def rates(model, **kwargs):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in mup_param_groups(model, **kwargs) for p in group["params"]}


def test_hidden_matrices_of_a_gpt():
    model = GPT(10, 4, dim=32, depth=1, num_heads=2, tie_weights=False)
    found = rates(model, lr=0.1, base_width=8)
    hidden = {name for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name}
    assert len(hidden) == 7
    assert found == {name: 0.025 if name in hidden else 0.1 for name, _ in model.named_parameters()}


def test_inputs_ties_and_frozen_parameters():
    found = rates(GPT(10, 4, dim=8, depth=1, num_heads=2), lr=1.0, base_width=2)
    assert found["token_embedding.weight"] == 1.0  # the head is tied to it
    vit = ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2)
    vit.head.requires_grad_(False)
    found = rates(vit, lr=1.0, base_width=2)
    assert found["positions"] == found["patch_embedding.weight"] == found["class_token"] == 1.0
    assert found["blocks.0.fc2.weight"] == 0.25
    assert not any(name.startswith("head") for name in found)


def test_one_rate_at_the_base_width_and_in_an_optimizer():
    assert set(rates(GPT(10, 4, dim=8, depth=1, num_heads=2), lr=0.3, base_width=8).values()) == {0.3}
    groups = mup_param_groups(MLP(5, 3, (8, 8)), 0.1, base_width=4)
    assert [group["lr"] for group in torch.optim.AdamW(groups).param_groups] == [0.05, 0.1]


def test_bad_input():
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        mup_param_groups(MLP(5, 3, (8,)), 0.0, base_width=4)
    with pytest.raises(ValueError, match="base_width must be at least 1, got 0"):
        mup_param_groups(MLP(5, 3, (8,)), 0.1, base_width=0)
