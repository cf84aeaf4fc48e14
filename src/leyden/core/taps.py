"""Outputs of inner modules, by name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["FeatureTaps"]


class FeatureTaps:
    """Collects what named modules return, only inside of `collect`.

    Outside of `collect` (in validation, in another model's forward) the hooks do nothing, so that two passes cannot be
    mixed up. A module called twice within one `collect` keeps its last output.

    Args:
        root: the module under which names are looked up, as in ``root.named_modules()``.
        names: modules to tap; more with `add`.

    Raises:
        ValueError: there is no module of that name.
    """

    def __init__(self, root: nn.Module, names: Iterable[str] = ()) -> None:
        self.root = root
        self._handles: dict[str, RemovableHandle | None] = {}  # None: the hook is still to be made
        self._store: dict[str, Any] | None = None
        for name in names:
            self.add(name)

    def __len__(self) -> int:
        """Number of tapped modules."""
        return len(self._handles)

    def add(self, name: str) -> None:
        """Taps one more module; a second request for the same one changes nothing.

        The name is looked up again at the next `collect`: a layer that is replaced before then is tapped as it is then.
        """
        modules = dict(self.root.named_modules())
        if name not in modules:
            near = get_close_matches(name, modules, n=3) or list(modules)[1:6]
            raise ValueError(f"there is no module {name!r} in {type(self.root).__name__}; near it: {', '.join(near)}")
        self._handles.setdefault(name, None)

    def remove(self) -> None:
        """Takes all hooks away."""
        self.renew()
        self._handles.clear()

    def renew(self) -> None:
        """Looks all names up again at the next `collect`: layers were replaced."""
        for name, handle in self._handles.items():
            if handle is not None:
                handle.remove()
            self._handles[name] = None

    @contextmanager
    def collect(self) -> Iterator[dict[str, Tensor]]:
        """Gives the dict that forward passes inside of the ``with`` fill."""
        for name, handle in self._handles.items():
            if handle is None:
                self._handles[name] = self._hook(name)
        store, self._store = self._store, {}
        try:
            yield self._store
        finally:
            self._store = store

    def _hook(self, name: str) -> RemovableHandle:
        target = self.root.get_submodule(name)

        def store(module: nn.Module, args: Any, output: Any) -> None:
            if self._store is not None and module is target:  # a copy of the module has a copy of this hook
                self._store[name] = output

        return target.register_forward_hook(store)
