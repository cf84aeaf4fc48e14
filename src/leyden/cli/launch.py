"""What can be wrong with several processes, found before they wait for each other."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import Strategy

from leyden.cli.config import ConfigError
from leyden.core.distributed import world_size

__all__ = ["check_environment", "check_same_config", "check_strategy"]


def check_environment(strategy: Strategy, environment: Mapping[str, str]) -> None:
    """Checks that processes which torchrun or a script of the user's started know where to meet.

    Args:
        strategy: of the trainer.
        environment: the environment variables.

    Raises:
        ConfigError: they would each wait somewhere else.
    """
    finds_by_itself = not isinstance(
        getattr(strategy, "cluster_environment", None), (LightningEnvironment, TorchElasticEnvironment)
    )
    several = getattr(strategy, "num_nodes", 1) > 1 or int(environment.get("WORLD_SIZE", 1)) > 1
    if finds_by_itself or not several or (dist.is_available() and dist.is_initialized()):
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise ConfigError(
            f"{' and '.join(missing)} must say where the processes of this run meet (torchrun and SLURM set them): "
            "give all processes the host name of the first node and a free port there"
        )


def check_strategy(strategy: Any) -> None:
    """Checks that the package of a strategy is there.

    Args:
        strategy: a name of Lightning's, or a class with its arguments.

    Raises:
        ConfigError: it is not.
    """
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    if "deepspeed" in name.lower() and find_spec("deepspeed") is None:
        raise ConfigError(f"the strategy {name} needs a package that is not there: pip install 'leyden[deepspeed]'")


def check_same_config(config: Mapping[str, Any]) -> None:
    """Checks that all processes were given the same config; called by all of them.

    Args:
        config: of this process, as plain values; where it is logged may differ.

    Raises:
        ConfigError: another process has another.
    """
    flat = _flat(config)
    others: list[Any] = [flat]
    if world_size() > 1:
        others = [None] * world_size()
        dist.all_gather_object(others, flat)
    for number, other in enumerate(others):
        for key in sorted({*flat, *others[0]}):
            if other.get(key) != others[0].get(key):
                raise ConfigError(
                    f"the processes were given different configs: {key} is {others[0].get(key)!r} in process 0 and "
                    f"{other.get(key)!r} in process {number}"
                )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Values by dotted keys; a class stands where its arguments begin, to be compared with a plain value there."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if (name, key) != ("trainer", "logger"):
            flat |= _flat(item, name if key == "class_path" else f"{name}.{key}".lstrip("."))
    return flat
