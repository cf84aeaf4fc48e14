"""What is typed last wins: the arguments of a resumed run against those that its checkpoint saved."""

from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

__all__ = ["apply_changes", "check_classes", "check_weights", "initial_state"]


_MOVING = {"_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"}  # of a schedule: state, no argument


def check_weights(saved: dict[str, Tensor], here: dict[str, Tensor], *, training: bool) -> None:
    """Checks that saved weights fit a module.

    Args:
        saved: state dict of the checkpoint; outside of training, parts of training callbacks are taken out of it.
        here: state dict of the module.
        training: whether the weights are trained on.

    Raises:
        MisconfigurationException: a name is missing on one side, or a shape differs.
    """
    if not training:
        for key in [key for key in saved if key.startswith("attached.") and key not in here]:
            del saved[key]
    for key in [*here, *saved]:
        if key not in saved or key not in here:
            lacks, has = ("the checkpoint", "the model") if key in here else ("the model", "the checkpoint")
            raise MisconfigurationException(f"the checkpoint does not fit the model: {lacks} lacks {key!r} of {has}")
        if saved[key].shape != here[key].shape:
            raise MisconfigurationException(
                f"the checkpoint does not fit the model: {key!r} has shape {tuple(saved[key].shape)} in the checkpoint "
                f"and {tuple(here[key].shape)} in the model"
            )


def initial_state(trainer: Any) -> dict[str, Any]:
    """Classes and arguments of optimizers and schedules as they were made: what can be compared between two runs."""
    plain = (int, float, bool, str, tuple, list, type(None))
    names = {id(p): name for name, p in trainer.lightning_module.named_parameters()}
    return {
        "classes": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "parameters": [
            [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ],
        "optimizers": [
            [
                {k: v for k, v in group.items() if k != "params" and isinstance(v, plain)}
                for group in optimizer.param_groups
            ]
            for optimizer in trainer.optimizers
        ],
        "schedulers": [
            {k: v for k, v in config.scheduler.state_dict().items() if isinstance(v, plain) and k not in _MOVING}
            for config in trainer.lr_scheduler_configs
        ],
    }


def check_classes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that the saved state of an optimizer is not given to one of another class, or with other groups.

    Raises:
        MisconfigurationException: it would be.
    """
    if before["classes"] != now["classes"]:
        raise MisconfigurationException(
            f"the checkpoint has the state of {', '.join(before['classes'])}, which {', '.join(now['classes'])} cannot "
            "go on with: resume with the same optimizer, or start a new run"
        )
    if before.get("parameters", now["parameters"]) != now["parameters"]:
        raise MisconfigurationException(
            "the checkpoint has the state of other parameter groups: resume with the same param_groups (their values "
            "may differ) and parts, or start a new run"
        )


def apply_changes(trainer: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Sets what differs between the two runs' arguments in the state that was loaded.

    Args:
        trainer: has the optimizers and schedules.
        before: `initial_state` of the run that was saved.
        now: `initial_state` of this run.
    """
    for optimizer, old_groups, new_groups in zip(
        trainer.optimizers, before["optimizers"], now["optimizers"], strict=False
    ):
        for group, old, new in zip(optimizer.param_groups, old_groups, new_groups, strict=False):
            rate = "initial_lr" if "initial_lr" in new else "lr"
            for key in new.keys() - {"lr", "initial_lr"}:
                if new[key] != old.get(key):
                    group[key] = new[key]
            removed = rate == "lr" and "initial_lr" in old  # the schedule
            if removed or new[rate] != old.get(rate):  # where the schedule stands is kept, its height changes
                group["lr"] = group["lr"] * new[rate] / old[rate] if old.get(rate) else new["lr"]
                group[rate] = new[rate]
    for config, old, new in zip(trainer.lr_scheduler_configs, before["schedulers"], now["schedulers"], strict=False):
        scheduler = config.scheduler
        changed = [key for key in new.keys() - {"last_epoch"} if new[key] != old.get(key)]
        for key in changed:
            setattr(scheduler, key, new[key])
        if changed and hasattr(scheduler, "_get_closed_form_lr"):  # torch's name: the rate of a step by its number
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler._get_closed_form_lr(), strict=True):
                group["lr"] = lr
