"""Models of Hugging Face transformers and of timm as `Network`.

Both cut a model in the same place: in front of its last linear layer, which becomes the head. In the model itself an
identity takes that layer's place, so that the model's own outputs are the features.
"""

from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

from torch import Tensor, nn

from leyden.core.network import Network

__all__ = ["TimmNetwork", "TransformersNetwork"]

Task = Literal["causal_lm", "sequence_classification", "image_classification"]


class TransformersNetwork(Network):
    """A model of Hugging Face transformers, new or pretrained.

    Inputs are tokens ``[N, T]`` (int64) or, for image classification, images ``[N, channels, H, W]``. Features are
    ``[N, T, D]`` for ``causal_lm`` and ``[N, D]`` for the others. Sequences to classify may be padded with the
    configuration's ``pad_token_id``, which is masked out. In YAML, ``config`` stands under ``dict_kwargs``.

    Args:
        name: a model type such as ``"gpt2"``, ``"bert"`` or ``"vit"``; if ``pretrained``, a model's name on the hub or
            a folder that ``save_pretrained`` wrote.
        task: which head the model has.
        num_classes: C; required unless ``task`` is ``"causal_lm"``.
        pretrained: load the weights too.
        config: values of the model's configuration; ``dtype`` is float32 unless given, also for pretrained weights.

    Raises:
        ImportError: transformers is not installed.
        ValueError: another task, an unknown ``name``, ``num_classes`` where there are none or none where there are,
            sequences to classify without ``pad_token_id``, or a model that is not features and then a linear layer.
    """

    def __init__(
        self, name: str, task: Task, *, num_classes: int | None = None, pretrained: bool = False, **config: Any
    ) -> None:
        super().__init__()
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {list(get_args(Task))}, got {task!r}")
        if (num_classes is None) != (task == "causal_lm"):
            raise ValueError(f"num_classes must be given unless task is 'causal_lm', got {num_classes} for {task!r}")
        transformers = _require("transformers", extra="text")
        config = {"dtype": "float32"} | config
        if num_classes is not None:
            config["num_labels"] = num_classes
        auto = {
            "causal_lm": transformers.AutoModelForCausalLM,
            "sequence_classification": transformers.AutoModelForSequenceClassification,
            "image_classification": transformers.AutoModelForImageClassification,
        }[task]
        if pretrained:
            # comes in eval mode, which Lightning would keep: dropout would never act
            model = auto.from_pretrained(name, **config).train()
        else:
            model = auto.from_config(transformers.AutoConfig.for_model(name, **config))
        settings = model.config.get_text_config()
        if getattr(settings, "final_logit_softcapping", None) is not None:
            raise ValueError(f"{name} caps its logits behind the head: pass final_logit_softcapping=None")
        self.pad_token_id: int | None = None
        if task == "sequence_classification":
            if settings.pad_token_id is None:
                raise ValueError(f"pad_token_id must be given to classify sequences with {name}")
            self.pad_token_id = settings.pad_token_id
        num_outputs = settings.vocab_size if num_classes is None else num_classes
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        if not layers or layers[-1].out_features != num_outputs:
            raise ValueError(f"{name} must end in a linear layer with {num_outputs} outputs, got {layers[-1:]}")
        self.head = _cut_head(model, layers[-1])
        self.feature_dim = layers[-1].in_features
        self.input_name: str = model.main_input_name
        settings.use_cache = False  # keys and values would be kept in training too
        self.model = model

    def features(self, x: Tensor) -> Tensor:
        """Maps tokens ``[N, T]`` or images ``[N, channels, H, W]`` to what the head takes."""
        inputs = {self.input_name: x}
        if self.pad_token_id is not None:
            inputs["attention_mask"] = (x != self.pad_token_id).long()
        return self.model(**inputs).logits


class TimmNetwork(Network):
    """A model of timm.

    In YAML, ``kwargs`` stand under ``dict_kwargs``.

    Args:
        name: the model's name in timm, such as ``"resnet18"``.
        num_classes: C.
        pretrained: load the published weights.
        kwargs: further arguments of ``timm.create_model``.

    Raises:
        ImportError: timm is not installed.
        ValueError: the model's classifier is not one linear layer.
    """

    def __init__(self, name: str, *, num_classes: int, pretrained: bool = False, **kwargs: Any) -> None:
        super().__init__()
        timm = _require("timm", extra="vision")
        self.model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
        classifier = self.model.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise ValueError(f"{name} must have one linear layer as classifier, got {classifier}")
        self.head = _cut_head(self.model, classifier)
        self.feature_dim = classifier.in_features

    def features(self, x: Tensor) -> Tensor:
        """Maps images ``[N, channels, H, W]`` to what the classifier takes, ``[N, D]``."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


def _cut_head(model: nn.Module, head: nn.Linear) -> nn.Linear:
    name = next(name for name, module in model.named_modules() if module is head)
    model.set_submodule(name, nn.Identity())
    return head


def _require(package: str, *, extra: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f'{package} is not installed: pip install "leyden[{extra}]"') from error
