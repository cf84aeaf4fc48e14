"""Interleaved offloading of optimizer states (A. Maurya, J. Ye, M. M. Rafique, F. Cappello, B. Nicolae, "Deep Optimizer
States: Towards Scalable Training of Transformer Models Using Interleaved Offloading", 2024, arXiv 2410.21316).

The states live in the host's memory. Of every k subgroups of parameters, k - 1 are updated by the host while the states
of the last one travel to the accelerator, where it is updated, and back. The rule for k is an own derivation; the
paper's also counts the conversion to half precision and contention on the host (unverified).
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["InterleavedOffload", "interleave_period", "subgroups"]

_MEASURED_STEPS = 3  # the first warms up


def interleave_period(*, cpu_update: float, gpu_update: float, transfer: float) -> int:
    """The smallest k for which k - 1 updates on the host hide the transfer and the update of one on the accelerator.

    Args:
        cpu_update: seconds that the host needs for a subgroup.
        gpu_update: seconds that the accelerator needs for it.
        transfer: seconds in which its states travel one way.

    Returns:
        ``1 + ceil(max(transfer, gpu_update) / cpu_update)``, 2 or more.

    Raises:
        ValueError: a time is not above 0 and finite.
    """
    for name, seconds in (("cpu_update", cpu_update), ("gpu_update", gpu_update), ("transfer", transfer)):
        if not 0.0 < seconds < math.inf:
            raise ValueError(f"{name} must be a time above 0, got {seconds}")
    return 1 + math.ceil(max(transfer, gpu_update) / cpu_update)


def subgroups(params: Iterable[Tensor], max_elements: int = 100_000_000) -> list[list[Tensor]]:
    """Parts parameters, in their order, into lists of at most so many elements; a larger parameter is one by itself.

    Args:
        params: parameters.
        max_elements: of a list.

    Raises:
        ValueError: ``max_elements`` is below 1.
    """
    if max_elements < 1:
        raise ValueError(f"max_elements must be at least 1, got {max_elements}")
    found: list[list[Tensor]] = []
    room = 0
    for p in params:
        if p.numel() > room:
            found.append([])
            room = max_elements
        found[-1].append(p)
        room -= p.numel()
    return found


class InterleavedOffload(Optimizer):
    """Wraps an optimizer that treats every parameter on its own, and keeps its states in the host's memory.

    Groups, states and state dict are the inner optimizer's, and so is the result: bit for bit where all is on the host,
    up to the rounding of its kernels where there is an accelerator. Without one, it is the inner optimizer's step. What
    needs all parameters at once, or counts steps per group, cannot be wrapped; clip gradients before the step.

    Args:
        params: parameters or groups of them.
        optimizer: makes the inner optimizer from ``params``.
        subgroup_size: largest number of elements in a subgroup.
        period: k; 1 updates all on the accelerator. ``"auto"`` measures in the first steps and takes
            `interleave_period`, the same on all processes.
        device: where the last of k subgroups is updated; that of the parameters if None.

    Raises:
        ValueError: ``period`` or ``subgroup_size`` is below 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        *,
        subgroup_size: int = 100_000_000,
        period: int | str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        if period != "auto" and (isinstance(period, str) or period < 1):
            raise ValueError(f"period must be 'auto' or at least 1, got {period!r}")
        if subgroup_size < 1:
            raise ValueError(f"subgroup_size must be at least 1, got {subgroup_size}")
        self.inner = optimizer(params)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()
        self.subgroup_size = subgroup_size
        self.period = period
        self.device = None if device is None else torch.device(device)
        self._seconds: dict[str, list[float]] = {"cpu_update": [], "gpu_update": [], "transfer": []}
        self._streams: tuple[Any, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads it; where states are offloaded, they go to the host in the next step."""
        self.inner.load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the inner optimizer."""
        if getattr(self, "_is_shared", False):
            self.inner.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure, if there is one, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        device = self.device or (params[0].device if params else torch.device("cpu"))
        if self.device is None and device.type == "cpu":
            self.inner.step()
            return loss
        self._interleave(subgroups(params, self.subgroup_size), device)
        return loss

    # ---- inner workings

    def _share(self) -> None:
        self.param_groups, self.state, self._is_shared = self.inner.param_groups, self.inner.state, True

    def _interleave(self, parts: list[list[Tensor]], device: torch.device) -> None:
        measuring = self.period == "auto"
        k = 2 if isinstance(self.period, str) else self.period
        for start in range(0, len(parts), k):
            window = parts[start : start + k]
            last = window.pop() if len(window) == k else None
            hosted = self._fetch(last, device, measuring) if last else {}
            for part in window:
                self._update_on_host(part, measuring)
            if last:
                self._update_on_device(last, hosted, device, measuring)
        _synchronize(device)
        enough = all(len(seconds) >= _MEASURED_STEPS for seconds in self._seconds.values())
        if measuring and enough:
            means = {name: sum(seconds[1:]) / (len(seconds) - 1) for name, seconds in self._seconds.items()}
            self.period = _agree(interleave_period(**means), device)

    def _fetch(self, part: list[Tensor], device: torch.device, measuring: bool) -> dict[Tensor, dict[str, Tensor]]:
        """Sends the states of a subgroup on their way; returns where they came from."""
        started = time.perf_counter()
        hosted: dict[Tensor, dict[str, Tensor]] = {}
        with _on(self._stream(0, device)):
            for p in part:
                hosted[p] = {name: t for name, t in self.state[p].items() if _is_alike(t, p) and _is_hosted(t)}
                for name, tensor in hosted[p].items():
                    self.state[p][name] = tensor.to(device, non_blocking=True, copy=True)
        if measuring and any(hosted.values()):
            _synchronize(device)
            self._seconds["transfer"].append(time.perf_counter() - started)
        return hosted

    def _update_on_host(self, part: list[Tensor], measuring: bool) -> None:
        places = [(p, p.data, p.grad) for p in part]
        for p, data, grad in places:
            assert grad is not None
            p.grad = None  # a gradient must lie where its parameter does
            p.data = data.to("cpu", copy=True)
            p.grad = grad.to("cpu")
            self._host_state(p)
        started = time.perf_counter()
        self._step_only(part)
        if measuring:
            self._seconds["cpu_update"].append(time.perf_counter() - started)
        for p, data, grad in places:
            p.grad = None
            data.copy_(p.data, non_blocking=True)
            p.data = data
            p.grad = grad

    def _update_on_device(
        self, part: list[Tensor], hosted: dict[Tensor, dict[str, Tensor]], device: torch.device, measuring: bool
    ) -> None:
        streams = self._stream(0, device), self._stream(1, device)
        if streams[0] is not None:
            torch.cuda.current_stream(device).wait_stream(streams[0])
            for p in part:
                for tensor in self.state[p].values():
                    if _is_alike(tensor, p):
                        tensor.record_stream(torch.cuda.current_stream(device))
        started = time.perf_counter()
        self._step_only(part)
        if measuring:
            _synchronize(device)
            self._seconds["gpu_update"].append(time.perf_counter() - started)
        if streams[1] is not None:
            streams[1].wait_stream(torch.cuda.current_stream(device))
        with _on(streams[1]):
            for p in part:
                for name, tensor in self.state[p].items():
                    if _is_alike(tensor, p):
                        host = hosted[p].get(name)
                        if host is None:  # made in this step
                            host = torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda")
                        host.copy_(tensor, non_blocking=True)
                        if streams[1] is not None:
                            tensor.record_stream(streams[1])
                        self.state[p][name] = host

    def _step_only(self, part: list[Tensor]) -> None:
        """A step of the inner optimizer that sees no other parameters."""
        chosen = {id(p) for p in part}
        whole = [group["params"] for group in self.param_groups]
        try:
            for group, params in zip(self.param_groups, whole, strict=True):
                group["params"] = [p for p in params if id(p) in chosen]
            self.inner.step()
        finally:
            for group, params in zip(self.param_groups, whole, strict=True):
                group["params"] = params

    def _host_state(self, p: Tensor) -> None:
        for name, tensor in self.state[p].items() if p in self.state else ():
            if _is_alike(tensor, p) and not _is_hosted(tensor):  # loaded onto the accelerator
                self.state[p][name] = tensor.cpu().pin_memory()

    def _stream(self, number: int, device: torch.device) -> Any:
        """Streams of CUDA for the way there and the way back; None elsewhere."""
        if device.type != "cuda":
            return None
        self._streams = self._streams or (torch.cuda.Stream(device), torch.cuda.Stream(device))
        return self._streams[number]


def _on(stream: Any) -> Any:
    return torch.cuda.stream(stream)


def _is_alike(value: Any, p: Tensor) -> bool:
    """Whether it is a state per element, and not a counter."""
    return isinstance(value, Tensor) and value.shape == p.shape and value.ndim > 0


def _is_hosted(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _agree(period: int, device: torch.device) -> int:
    """The largest of all processes."""
    if not dist.is_available() or not dist.is_initialized():
        return period
    on = device if dist.get_backend() == "nccl" else torch.device("cpu")
    largest = torch.tensor(period, device=on)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)
