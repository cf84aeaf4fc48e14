"""Replacing layers of a finished network."""

from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from leyden.core.taps import FeatureTaps

__all__ = ["replace_modules"]


def replace_module(root: nn.Module, taps: FeatureTaps, name: str, module: nn.Module) -> nn.Module:
    """Puts a module in all places of the one of a name; see `Method.replace`.

    Args:
        root: holds the old module.
        taps: of the root; they are made anew.
        name: dotted.
        module: gets device, dtype and mode of the old one.

    Raises:
        ValueError: there is no module of this name.
    """
    modules = dict(root.named_modules())
    if not name or name not in modules:
        near = get_close_matches(name, modules, n=3) or list(modules)[1:6]
        raise ValueError(f"there is no module {name!r} in {type(root).__name__}; near it: {', '.join(near)}")
    old = modules[name]
    taps.renew()
    for parent in modules.values():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = module
    return _placed_like(module, old)


def replace_modules(
    root: nn.Module,
    predicate: Callable[[str, nn.Module], bool],
    build: Callable[[nn.Module], nn.Module],
) -> list[str]:
    """Replaces modules in place; weights, dtype, device and mode are kept.

    Entries of the old module's state dict whose name and shape the new module has too are copied; a module that stands
    in several places gets one replacement. Modules inside of a replaced one are not looked at.

    Args:
        root: network to change.
        predicate: takes a dotted name and a module, says whether to replace it.
        build: takes the old module, returns the new one.

    Returns:
        The dotted names that were replaced.

    Raises:
        ValueError: nothing matched, or the root itself did (replace it where it is held).
    """
    if predicate("", root):
        raise ValueError(f"the root module ({type(root).__name__}) cannot replace itself")
    replaced: dict[nn.Module, nn.Module] = {}
    names: list[str] = []
    _walk(root, "", predicate, build, replaced, names)
    if not names:
        kinds = sorted({type(module).__name__ for module in root.modules()})
        raise ValueError(f"no module of {type(root).__name__} is to be replaced; it has {', '.join(kinds)}")
    return names


def _walk(
    parent: nn.Module,
    prefix: str,
    predicate: Callable[[str, nn.Module], bool],
    build: Callable[[nn.Module], nn.Module],
    replaced: dict[nn.Module, nn.Module],
    names: list[str],
) -> None:
    for key, child in list(parent._modules.items()):
        if child is None:
            continue
        name = prefix + key
        if child in replaced or predicate(name, child):
            if child not in replaced:
                replaced[child] = _like(build(child), child)
            parent._modules[key] = replaced[child]
            names.append(name)
        else:
            _walk(child, name + ".", predicate, build, replaced, names)


def _like(new: nn.Module, old: nn.Module) -> nn.Module:
    if new is old:
        return new
    _placed_like(new, old)
    here = new.state_dict()
    kept = {k: v for k, v in old.state_dict().items() if k in here and here[k].shape == v.shape}
    new.load_state_dict(kept, strict=False)
    return new


def _placed_like(new: nn.Module, old: nn.Module) -> nn.Module:
    example = next(iter([*old.parameters(), *old.buffers()]), None)
    if example is not None:
        new.to(device=example.device, dtype=example.dtype if example.is_floating_point() else None)
    return new.train(old.training)
