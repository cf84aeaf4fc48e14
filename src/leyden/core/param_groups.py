"""Parameter groups by name: settings of the optimizer for biases, norms, embeddings or single layers."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Patterns", "group_by_name", "make_optimizer"]

Patterns = Mapping[str, Mapping[str, Any]]


def make_optimizer(
    optimizer: Callable[[Iterable], Optimizer],
    modules: Mapping[str, nn.Module],
    patterns: Patterns | None = None,
    *,
    lr_scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """Makes an optimizer for the trainable parameters of modules, each with groups of its own.

    Args:
        optimizer: makes it from groups.
        modules: modules by their names, which begin the names of their parameters.
        patterns: see `group_by_name`; the setting ``lr_scale`` is a multiple of the optimizer's learning rate.
        lr_scales: further multiples, for whole modules, by the names of these.

    Raises:
        MisconfigurationException: a pattern matches no parameter, or the optimizer has no setting of that name.
    """
    patterns, lr_scales = patterns or {}, lr_scales or {}
    groups: list[dict[str, Any]] = []
    names: list[str] = []
    for prefix, module in modules.items():
        named = [(name, p) for name, p in module.named_parameters(prefix) if p.requires_grad]
        names += [name for name, _ in named]
        for group in group_by_name(named, patterns):
            groups.append(group | {"lr_scale": group.get("lr_scale", 1.0) * lr_scales.get(prefix, 1.0)})
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise MisconfigurationException(f"param_groups: {pattern!r} matches none of the parameters {shown}")
    made = optimizer(groups)
    known = {*made.defaults, "lr_scale"}
    for pattern, settings in patterns.items():
        for key in settings.keys() - known:
            raise MisconfigurationException(
                f"param_groups: {pattern!r} sets {key!r}, which {type(made).__name__} does not have; "
                f"it may be {', '.join(sorted(known))}"
            )
    for group in made.param_groups:
        group["lr"] = group["lr"] * group.pop("lr_scale", 1.0)
    return made


def group_by_name(named_parameters: Iterable[tuple[str, Tensor]], patterns: Patterns) -> list[dict[str, Any]]:
    """Groups parameters for an optimizer: those with the same settings make one group.

    A parameter has the settings of all patterns that its name matches; where two set the same key, the later counts.

    Args:
        named_parameters: names and parameters.
        patterns: settings by shell-style pattern, as in ``{"*.bias": {"weight_decay": 0.0}}``; ``*`` spans dots too.

    Returns:
        ``params`` and the settings of each group, in the order of the first parameters.
    """
    found: list[tuple[dict[str, Any], list[Tensor]]] = []
    for name, p in named_parameters:
        settings: dict[str, Any] = {}
        for pattern, values in patterns.items():
            if fnmatchcase(name, pattern):
                settings |= values
        alike = [params for others, params in found if others == settings]
        if alike:
            alike[0].append(p)
        else:
            found.append((settings, [p]))
    return [{"params": params, **settings} for settings, params in found]
