"""Distillation from frozen teachers (G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network",
2015, arXiv 1503.02531), for any objective and any pair of layers."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from leyden.callbacks._teachers import Teachers
from leyden.core import Batch, LogitCache, Method, MethodCallback, Network, Outputs, Terms, evaluating, require_keys
from leyden.data import DataModule, EvalLoader
from leyden.losses import KD

__all__ = ["Distillation"]


class Distillation(MethodCallback):
    """Adds what an objective says of the outputs of the student and of frozen teachers to the loss of any method.

    The term is called ``kd``; that of a second callback ``kd_2``, and so on. The teachers see the same (augmented)
    input as the student; of several, the term is the mean. Their weights are in no checkpoint, but a resumed run must
    be given the same ones.

    Args:
        teacher: one network or several. None stands for those of the first `Distillation` in the trainer's list, which
            runs them once for all.
        objective: a loss of ``(student, teacher)`` or of ``(student, teacher, target)``, with the target of the batch
            (None if it has none); `leyden.losses.KD` if None. Its parameters, if it has any, are trained too.
        weight: of the term.
        base_weight: weight of the method's own term ``task``; with 0 no labels are used. Those of several callbacks are
            multiplied.
        taps: what the objective compares, the outputs of modules of the student and of the teacher by their names in
            the networks, such as ``{body.2: body.4}``, over which the term is a sum. ``logits`` and ``features`` are
            what a network returns and what goes into its head. None stands for ``{logits: logits}``.
        projectors: makes a module from the shapes of the two outputs (without N), such as `leyden.nn.Projector`, for
            each tap of the student but its logits. It is trained with the student, and in no exported network.
        cache: folder for the logits of the teachers, which are then computed once per training sample. Its files have
            names that tell teachers, data and precisions apart.

    Raises:
        ValueError: there is no teacher, or a weight is negative.
    """

    def __init__(
        self,
        teacher: Network | list[Network] | None = None,
        objective: nn.Module | None = None,
        *,
        weight: float = 1.0,
        base_weight: float = 1.0,
        taps: dict[str, str] | None = None,
        projectors: Callable[[Sequence[int], Sequence[int]], nn.Module] | None = None,
        cache: str | None = None,
    ) -> None:
        for name, value in (("weight", weight), ("base_weight", base_weight)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if teacher is None and cache is not None:
            raise ValueError("cache belongs to the Distillation that has the teachers, not to one without teacher")
        self.taps = {"logits": "logits"} if taps is None else taps
        if not self.taps:
            raise ValueError("taps must name at least one pair of outputs, got none")
        self.teachers = None if teacher is None else Teachers(teacher)
        self.objective = objective or KD()
        self._takes_target = len(inspect.signature(self.objective.forward).parameters) > 2
        self.weight = weight
        self.base_weight = base_weight
        self.projectors = projectors
        self.cache = cache
        self._name = ""  # of the term
        self._first = self  # the callback that runs the teachers
        self._projectors: dict[str, nn.Module] = {}
        self._caches: list[LogitCache] = []

    def build(self, method: Method) -> None:
        """Attaches teachers, sizes projectors by a dry run on two training samples, and tries the objective on them.

        Raises:
            MisconfigurationException: there are no teachers, the data are no `leyden.data.DataModule`, or a cache would
                be wrong.
            ValueError: there is no module of a given name, or outputs have shapes that do not fit.
        """
        self._name = "kd" + self.state_key.removeprefix(type(self).__qualname__)
        alike = [callback for callback in method.trainer.callbacks if type(callback) is type(self)]  # type: ignore[attr-defined]
        self._first = alike[0] if self.teachers is None else self
        if self._first.teachers is None:
            raise MisconfigurationException(
                "Distillation without teacher uses that of the first Distillation in the trainer's list, which has none"
            )
        users = [self, *(callback for callback in alike if callback.teachers is None and alike[0] is self)]
        if self.teachers is not None:
            taps = {tap for user in users for tap in user.taps.values() if tap not in ("logits", "features")}
            self.teachers.attach(method, self.state_key, sorted(taps))
        for tap in self.taps:
            if tap not in ("logits", "features"):
                method.taps.add(f"network.{tap}")
        if any(True for _ in chain(self.objective.parameters(), self.objective.buffers())):
            method.attach(f"{self._name}_objective", self.objective.to(method.device))
        data = method.datamodule
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"Distillation tries two samples before training: it needs a DataModule, got {type(data).__name__}"
            )
        rows = list(range(min(2, data.num_samples)))
        batch = next(iter(EvalLoader(data.dataset("train"), [rows])))
        self._dry_run(method, {key: value.to(method.device) for key, value in batch.items()})
        if self.cache is not None:
            self._open_caches(method, data, batch["input"], users)

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Weighs ``task`` and adds ``kd``."""
        key = f"{self._first.state_key}_teachers"
        if key not in outputs.extra:
            outputs.extra[key] = self._first._ask(batch)
        term = self.weight * self._term(batch, outputs, outputs.extra[key])
        return terms | {"task": self.base_weight * terms["task"], self._name: term}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Waits until cached logits are on disk."""
        for cache in self._caches:
            cache.flush()

    def state_dict(self) -> dict[str, Any]:
        """Fingerprints of the teachers."""
        return {"teachers": self.teachers.fingerprints if self.teachers else []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that the teachers are the same.

        Raises:
            ValueError: they are not.
        """
        if self.teachers and self.teachers.fingerprints != state_dict["teachers"]:
            raise ValueError(
                f"teacher has other weights ({self.teachers.fingerprints}) than when the run began "
                f"({state_dict['teachers']}): give it the same, or begin a new run from the student's weights"
            )

    def _ask(self, batch: Batch) -> list[Outputs]:
        assert self.teachers is not None
        if not self._caches:
            return self.teachers(batch["input"])
        require_keys(batch, "index", user="Distillation's cache")
        cached = [cache.read(batch["index"]) for cache in self._caches]
        if all(bool(written.all()) for _, written in cached):
            return [Outputs(logits=logits) for logits, _ in cached]
        results = self.teachers(batch["input"])
        for cache, result in zip(self._caches, results, strict=True):
            cache.write(batch["index"], result.logits)
        return results

    def _term(self, batch: Batch, student: Outputs, teachers: list[Outputs]) -> Tensor:
        values = []
        for tap, wanted in self.taps.items():
            output = _output(student, tap, prefix="network.")
            if tap in self._projectors:
                output = self._projectors[tap](output)
            target = [batch.get("target")] if self._takes_target else []
            values += [self.objective(output, _output(teacher, wanted), *target) for teacher in teachers]
        return torch.stack(values).sum() / len(teachers)

    @torch.no_grad()
    def _dry_run(self, method: Method, batch: Batch) -> None:
        assert self._first.teachers is not None
        with evaluating(method.network), method.taps.collect() as taps:
            student = method.compute(batch)
            student.taps = taps
        teachers = self._first.teachers(batch["input"])
        self._projectors = {}
        if self.projectors is not None:
            for tap, wanted in self.taps.items():
                if tap != "logits":
                    shapes = [_output(student, tap, prefix="network.").shape, _output(teachers[0], wanted).shape]
                    self._projectors[tap] = self.projectors(*(tuple(shape[1:]) for shape in shapes))
            modules = nn.ModuleList(self._projectors.values()).to(method.device)
            method.attach(f"{self._name}_projectors", modules)
        with evaluating(nn.ModuleList([self.objective, *self._projectors.values()])):
            self._term(batch, student, teachers)

    def _open_caches(self, method: Method, data: DataModule, samples: Tensor, users: "list[Distillation]") -> None:
        assert self.teachers is not None
        assert self.cache is not None
        taps = sorted({tap for user in users for tap in user.taps.values()} - {"logits"})
        if taps:
            raise MisconfigurationException(f"cache holds logits only, but taps ask the teacher for {taps}")
        changing = [
            type(cb).__name__
            for cb in method.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(cb, MethodCallback) and type(cb).transform_batch is not MethodCallback.transform_batch
        ]
        if data.augment is not None or changing:
            raise MisconfigurationException(
                "cache needs samples that are the same in each epoch, but they are changed by "
                f"{', '.join([*changing, *(['augment of the data'] if data.augment is not None else [])])}"
            )
        logits = [result.logits for result in self.teachers(samples.to(method.device))]
        if logits[0].ndim != 2:
            raise MisconfigurationException(f"cache holds one row per sample, got logits {tuple(logits[0].shape)}")
        seen = hashlib.sha256(samples.numpy().tobytes() + str(method.trainer.precision).encode()).hexdigest()[:8]
        self._caches = [
            LogitCache(Path(self.cache, f"{name}-{seen}.npy"), data.num_samples, rows.shape[1])
            for name, rows in zip(self.teachers.fingerprints, logits, strict=True)
        ]


def _output(outputs: Outputs, tap: str, prefix: str = "") -> Tensor:
    if tap == "logits":
        return outputs.logits
    output = outputs.features if tap == "features" else outputs.taps[prefix + tap]
    if not isinstance(output, Tensor):
        raise ValueError(f"the output of {tap!r} must be a tensor to be compared, got {type(output).__name__}")
    return output
