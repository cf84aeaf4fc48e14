"""Runs in Weights & Biases: named as their folders, offline unless somebody is logged in, ended in time."""

import os
import secrets
import sys
from netrc import NetrcParseError, netrc
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from jsonargparse import Namespace

__all__ = ["finish_wandb", "is_wandb", "named_by_class", "new_wandb_id", "prepare_wandb", "wandb_mode"]


def is_wandb(class_path: str) -> bool:
    """Whether a logger is W&B's, Lightning's or ours."""
    return class_path.rsplit(".", 1)[-1] == "WandbLogger"


def new_wandb_id() -> str:
    """Names a run; begins with a letter, for YAML reads ``1234e567`` as a number."""
    return f"r{secrets.token_hex(4)}"


def wandb_mode() -> str | None:
    """What the user said by ``WANDB_MODE``, else ``"offline"`` if nobody is logged in; None leaves it to W&B.

    It is always told to a run, because W&B looks at the environment only at the first run of a process.
    """
    said = os.environ.get("WANDB_MODE")
    if said:
        return {"dryrun": "offline", "run": "online"}.get(said, said)
    return None if _is_logged_in() else "offline"


def prepare_wandb(init_args: "Namespace", label: str) -> None:
    """Completes a logger's arguments: the run is called as its folder, and its last words are few.

    Args:
        init_args: of the logger; changed in place.
        label: of the run folder.
    """
    init_args.name = init_args.name or label
    # W&B writes in a process of its own, which keeps the working folder in which it was started
    init_args.save_dir = os.path.abspath(init_args.save_dir)
    # not Lightning's `offline`: it refuses artifacts, which `wandb sync` uploads too
    init_args.mode = init_args.get("mode") or wandb_mode()
    os.environ.setdefault("WANDB_QUIET", "true")
    # seconds; without it the end of a run would wait for a server that has gone as long as that takes
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")


def finish_wandb() -> None:
    """Ends the W&B run of this process, if there is one."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def named_by_class(config: Any) -> Any:
    """Copies a config with the keys of the command line, which W&B makes its columns of.

    The level ``init_args`` falls away, and the items of a list of classes go by their class:
    ``trainer.callbacks.EMA.decay``.
    """
    if isinstance(config, dict):
        flat = config | (config.get("init_args") or {}) if "class_path" in config else config
        return {key: named_by_class(value) for key, value in flat.items() if key != "init_args"}
    if not isinstance(config, list):
        return config
    if not config or not all(isinstance(item, dict) and "class_path" in item for item in config):
        return [named_by_class(item) for item in config]
    named: dict[str, Any] = {}
    for item in config:
        name = unique = item["class_path"].rsplit(".", 1)[-1]
        number = 2
        while unique in named:
            unique, number = f"{name}_{number}", number + 1
        named[unique] = named_by_class(item)
    return named


def _is_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
