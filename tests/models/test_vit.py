import pytest
import torch

from leyden.models import ViT


def test_number_of_parameters_of_vit_ti():
    with torch.device("meta"):
        network = ViT(224, 16, 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_717_416  # as published with DeiT


def test_equals_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=2,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=24,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
        num_labels=5,
    )
    torch.manual_seed(0)
    network = ViT(8, 4, 5, in_channels=2, dim=12, depth=2, num_heads=3, mlp_ratio=2.0).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference = transformers.ViTForImageClassification(config).double().eval()
    reference.load_state_dict({_their_name(name): tensor for name, tensor in network.state_dict().items()})
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(x), reference(x).logits)


def _their_name(name):
    replacements = {
        "class_token": "vit.embeddings.cls_token",
        "positions": "vit.embeddings.position_embeddings",
        "patch_embedding.": "vit.embeddings.patch_embeddings.projection.",
        "blocks.": "vit.layers.",
        ".out_proj.": ".o_proj.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".fc": ".mlp.fc",
        "head.": "classifier.",
    }
    if name.startswith("norm."):
        return f"vit.layer{name}"
    for ours, theirs in replacements.items():
        name = name.replace(ours, theirs)
    return name


def test_weights_start_as_documented():
    torch.manual_seed(0)
    network = ViT(32, 4, 10, depth=1)
    for weight in (network.positions, network.class_token, network.blocks[0].fc1.weight, network.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)  # the class token has only 192 numbers
    assert all(module.bias.abs().max() == 0 for module in network.modules() if isinstance(module, torch.nn.Linear))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images must be 8 x 8, got shape \(2, 3, 8, 9\)"):
        ViT(8, 4, 2, dim=6, depth=1)(torch.rand(2, 3, 8, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "image_size must be a multiple of patch_size, got image_size=30 and patch_size=4"),
        ({"patch_size": 0}, "patch_size must be 1 or more, got 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"dim": 100}, "dim must be a multiple of num_heads, got dim=100 and num_heads=3"),
        ({"dropout": 2.0}, r"dropout must be in \[0, 1\), got 2.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViT(**({"image_size": 32, "patch_size": 4, "num_classes": 10} | arguments))
