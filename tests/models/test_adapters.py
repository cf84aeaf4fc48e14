import sys

import jsonargparse
import pytest
import torch

from leyden.models import TimmNetwork, TransformersNetwork

GPT2 = {"vocab_size": 13, "n_positions": 8, "n_embd": 12, "n_layer": 1, "n_head": 2}
BERT = {
    "vocab_size": 13,
    "max_position_embeddings": 8,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
VIT = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
LLAMA = {
    "vocab_size": 13,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ROBERTA = BERT | {"max_position_embeddings": 16, "pad_token_id": 0}
TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])  # one padded
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CASES = {
    "gpt2": ("gpt2", "causal_lm", None, GPT2, TOKENS, (2, 4, 12)),
    "llama": ("llama", "causal_lm", None, LLAMA, TOKENS, (2, 4, 12)),
    "bert": ("bert", "sequence_classification", 3, BERT, TOKENS, (2, 12)),
    "roberta": ("roberta", "sequence_classification", 3, ROBERTA, TOKENS, (2, 12)),
    "gpt2_classifier": ("gpt2", "sequence_classification", 3, GPT2 | {"pad_token_id": 0}, TOKENS, (2, 12)),
    "vit": ("vit", "image_classification", 3, VIT, IMAGES, (2, 12)),
    "resnet": ("resnet", "image_classification", 3, RESNET, IMAGES, (2, 8)),
}


@pytest.fixture(params=CASES)
def case(request):
    pytest.importorskip("transformers")
    return CASES[request.param]


def test_equals_the_uncut_model(case, tmp_path):
    import transformers

    name, task, num_classes, config, inputs, shape = case
    auto = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "sequence_classification": transformers.AutoModelForSequenceClassification,
        "image_classification": transformers.AutoModelForImageClassification,
    }[task]
    labels = {} if num_classes is None else {"num_labels": num_classes}
    torch.manual_seed(0)
    reference = auto.from_config(transformers.AutoConfig.for_model(name, **config, **labels)).eval()
    reference.save_pretrained(tmp_path)
    network = TransformersNetwork(str(tmp_path), task, num_classes=num_classes, pretrained=True)
    assert all(module.training for module in network.modules())  # else Lightning would keep dropout off
    network.eval()
    mask = {"attention_mask": (inputs != 0).long()} if task == "sequence_classification" else {}
    expected = reference(inputs, **mask).logits
    assert expected.std() > 0
    features = network.features(inputs)
    assert features.shape == shape
    assert network.feature_dim == shape[-1]
    torch.testing.assert_close(network(inputs), expected)
    torch.testing.assert_close(network(inputs), network.head(features), rtol=0, atol=0)


def test_new_model_and_state_dict(case):
    name, task, num_classes, config, inputs, shape = case
    make = lambda: TransformersNetwork(name, task, num_classes=num_classes, **config)  # noqa: E731
    network, other = make(), make()
    assert all(module.training for module in network.modules())
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.eval()(inputs), network.eval()(inputs), rtol=0, atol=0)
    assert network(inputs).shape == (*shape[:-1], 13 if num_classes is None else num_classes)
    network(inputs).square().sum().backward()
    assert network.head.weight.grad is not None


def test_head_can_be_replaced():
    pytest.importorskip("transformers")
    network = TransformersNetwork("gpt2", "causal_lm", **GPT2)
    assert network.head.weight is network.model.get_input_embeddings().weight
    network.head = torch.nn.Linear(12, 5)
    assert network(TOKENS).shape == (2, 4, 5)


def test_padding_does_not_change_outputs():
    pytest.importorskip("transformers")
    network = TransformersNetwork("bert", "sequence_classification", num_classes=3, **BERT).eval()
    torch.testing.assert_close(network(TOKENS[1:]), network(TOKENS[1:, :3]))


@pytest.mark.parametrize(("given", "expected"), [({}, torch.float32), ({"dtype": torch.bfloat16}, torch.bfloat16)])
def test_pretrained_weights_are_float32_unless_asked(tmp_path, given, expected):
    pytest.importorskip("transformers")
    TransformersNetwork("gpt2", "causal_lm", **GPT2).model.to(torch.bfloat16).save_pretrained(tmp_path)
    network = TransformersNetwork("gpt2", "causal_lm", **GPT2, **given)
    assert {parameter.dtype for parameter in network.parameters()} == {expected}
    network = TransformersNetwork(str(tmp_path), "causal_lm", pretrained=True, **given)
    assert {parameter.dtype for parameter in network.parameters()} == {expected}


def test_from_yaml():
    pytest.importorskip("transformers")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TransformersNetwork, "network")
    config = parser.parse_object(
        {
            "network": {
                "class_path": "leyden.models.TransformersNetwork",
                "init_args": {"name": "gpt2", "task": "causal_lm"},
                "dict_kwargs": GPT2,
            }
        }
    )
    assert parser.instantiate(config).network.feature_dim == 12


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gpt2", {"task": "translation"}, r"task must be one of \['causal_lm', .*\], got 'translation'"),
        ("gpt2", {"task": "causal_lm", "num_classes": 3}, "num_classes must be given unless .* got 3 for 'causal_lm'"),
        ("bert", {"task": "sequence_classification"}, "num_classes must be given unless .* got None for 'sequence"),
        (
            "gpt2",
            {"task": "sequence_classification", "num_classes": 3, **GPT2},
            "pad_token_id must be given to classify sequences with gpt2",
        ),
        (
            "gemma2",
            {"task": "causal_lm", **LLAMA, "num_key_value_heads": 1, "head_dim": 6},
            "gemma2 caps its logits behind the head: pass final_logit_softcapping=None",
        ),
    ],
)
def test_bad_arguments_are_refused(name, arguments, message):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=message):
        TransformersNetwork(name, **arguments)


def test_absent_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'^transformers is not installed: pip install "leyden\[text\]"$'):
        TransformersNetwork("gpt2", "causal_lm")
    with pytest.raises(ImportError, match=r'^timm is not installed: pip install "leyden\[vision\]"$'):
        TimmNetwork("resnet18", num_classes=3)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {"drop_rate": 0.1}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_timm_equals_the_uncut_model(name, kwargs):
    timm = pytest.importorskip("timm", reason="timm and torchvision, of the extra vision", exc_type=ImportError)
    network = TimmNetwork(name, num_classes=3, **kwargs).eval()
    reference = timm.create_model(name, num_classes=3, **kwargs).eval()
    merged = {key.removeprefix("model."): tensor for key, tensor in network.state_dict().items()}
    classifier = next(key for key, module in reference.named_modules() if module is reference.get_classifier())
    for part in ("weight", "bias"):
        merged[f"{classifier}.{part}"] = merged.pop(f"head.{part}")
    reference.load_state_dict(merged)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), reference(x))
    assert network.features(x).shape == (2, network.feature_dim)
