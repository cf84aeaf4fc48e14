"""What a test shows: which classes were confused, pairs of target and prediction, text, and the worst samples."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional

from leyden.core.batch import Batch
from leyden.core.distributed import rank, world_size

__all__ = ["TestRecord"]

MAX_MATRIX = 100  # classes; of more only the most confused pairs are kept
MAX_READABLE = 32  # classes; of more these pairs are kept too
MAX_CONFUSED = 30
MAX_POINTS = 3_000
MAX_OUTPUTS = 4  # real numbers per sample
MAX_SIDE = 128  # pixels of a picture
MAX_VALUES = 12  # numbers of a row of a table
WORST_TEXTS = 6
GENERATED = 200  # tokens


class TestRecord:
    """Collects over the batches of a test, on their device.

    What the test is about is told by the shapes: logits ``[N, C]`` with classes ``[N]`` (or ``[N, C]``, if the data
    have ``num_classes``), real numbers of the target's shape, or logits ``[N, T, V]`` with tokens ``[N, T]``. Of
    anything else nothing is recorded.

    Args:
        num_worst: number of samples with the greatest loss that are kept.
        datamodule: asked for ``num_classes``, ``class_names`` and ``decode``.
    """

    __test__ = False  # for pytest

    def __init__(self, num_worst: int, datamodule: Any) -> None:
        self.num_worst = num_worst
        self.datamodule = datamodule
        self.kind: str | None = None
        self._counts: Tensor | None = None  # [C, C], int64
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._worst: Batch = {}
        self._prompts: Tensor | None = None  # [P, T]
        self._num_samples = 0

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch.

        Args:
            logits: output of the network.
            batch: with ``input``, ``target`` and ``index``.
        """
        target = batch.get("target")
        kind = None if target is None else self._kind_of(logits, target)
        if kind is None or target is None:
            return
        self.kind = kind
        self._num_samples += len(target)
        logits = logits.float()
        if kind == "classes":
            target = target.argmax(-1) if target.ndim == 2 else target
            self._add_classes(logits, target, batch)
        elif kind == "numbers":
            logits, target = logits.flatten(1), target.float().flatten(1)
            self._pairs.append((target[:, :MAX_OUTPUTS], logits[:, :MAX_OUTPUTS]))
            self._keep_worst((logits - target).square().mean(-1), {"prediction": logits, "target": target}, batch)
        else:
            if self._prompts is None:
                inputs = batch["input"]
                self._prompts = inputs[[0, len(inputs) // 2, -1], : max(1, inputs.shape[1] // 2)]
            loss = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # [N, T], 0 if ignored
            mean = loss.sum(-1) / (target != -100).sum(-1).clamp(min=1)
            self._keep_worst(mean, {"prediction": mean, "target": target}, batch)

    def finish(self, model: LightningModule) -> dict[str, Any] | None:
        """Puts the parts of all processes together; all of them call it.

        Returns:
            What is written; None if nothing was recorded.
        """
        generated = {"generated": self._generate(model)} if self.kind == "tokens" else {}
        part = {
            "kind": self.kind,
            "num_samples": self._num_samples,
            "counts": None if self._counts is None else self._counts.cpu(),
            "pairs": [torch.cat(side).cpu() for side in zip(*self._pairs, strict=True)],
            "worst": {key: value.cpu() for key, value in self._worst.items()},
        }
        parts: list[Any] = [part]
        if world_size() > 1:
            parts = [None] * world_size()
            dist.all_gather_object(parts, part)
        parts = [part for part in parts if part["kind"] is not None]
        if not parts or rank() > 0:
            return None
        self.kind = parts[0]["kind"]  # this process may have had no sample
        content: dict[str, Any] = {"num_samples": sum(part["num_samples"] for part in parts), **generated}
        worst = {key: torch.cat([part["worst"][key] for part in parts]) for key in parts[0]["worst"]}
        number = max([len(part["worst"].get("loss", ())) for part in parts])
        if self.kind == "classes":
            content |= self._confusion(sum(part["counts"] for part in parts))
        elif self.kind == "numbers":
            target, prediction = (torch.cat([part["pairs"][side] for part in parts]) for side in range(2))
            every = -(-len(target) // MAX_POINTS)
            both = torch.stack([target, prediction], -1)[::every]  # [S, D, 2]
            content["pairs"] = [_rounded(both[:, column]) for column in range(both.shape[1])]
        if worst:
            order = worst["loss"].argsort(descending=True, stable=True)[:number]
            content["worst"] = [self._sample({key: value[row] for key, value in worst.items()}) for row in order]
        return content

    def _kind_of(self, logits: Tensor, target: Tensor) -> str | None:
        if (
            logits.ndim == 2
            and logits.shape[-1] > 1
            and (target.ndim == 1 or getattr(self.datamodule, "num_classes", None))
        ):
            return "classes" if not target.is_floating_point() or target.ndim == 2 else None
        if logits.shape == target.shape and target.is_floating_point() and target.ndim > 1:
            return "numbers"
        tokens = logits.ndim == 3 and target.shape == logits.shape[:2] and not target.is_floating_point()
        return "tokens" if tokens and hasattr(self.datamodule, "decode") else None

    def _add_classes(self, logits: Tensor, target: Tensor, batch: Batch) -> None:
        num_classes = logits.shape[-1]
        known = (target >= 0) & (target < num_classes)  # others mark samples without a class
        logits, target, batch = logits[known], target[known], {key: value[known] for key, value in batch.items()}
        prediction = logits.argmax(-1)
        counts = torch.bincount(target * num_classes + prediction, minlength=num_classes**2)
        self._counts = counts if self._counts is None else self._counts + counts
        log_p = logits.log_softmax(-1)
        loss = -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        self._keep_worst(loss, {"prediction": prediction, "target": target}, batch)

    def _keep_worst(self, loss: Tensor, values: Batch, batch: Batch) -> None:
        """Keeps the samples with the greatest loss of all so far."""
        number = min(self.num_worst, WORST_TEXTS if self.kind == "tokens" else self.num_worst)
        rows = {"loss": loss, **values, "input": batch["input"]}
        if "index" in batch:
            rows["index"] = batch["index"]
        best = loss.topk(min(number, len(loss))).indices
        rows = {key: value.detach()[best] for key, value in rows.items()}
        if self._worst:
            rows = {key: torch.cat([self._worst[key], value]) for key, value in rows.items()}
            best = rows["loss"].topk(min(number, len(rows["loss"]))).indices
            rows = {key: value[best] for key, value in rows.items()}
        self._worst = rows

    def _class_names(self, num_classes: int) -> list[str]:
        names = [str(name) for name in getattr(self.datamodule, "class_names", None) or []]
        return names + [str(number) for number in range(len(names), num_classes)]

    def _confusion(self, counts: Tensor) -> dict[str, Any]:
        num_classes = round(len(counts) ** 0.5)
        names = self._class_names(num_classes)
        matrix = counts.view(num_classes, num_classes)
        content: dict[str, Any] = {}
        if num_classes <= MAX_MATRIX:
            content = {"confusion": matrix.tolist(), "class_names": names[:num_classes]}
        if num_classes > MAX_READABLE:
            wrong = (matrix - matrix.diag().diag()).flatten()
            most = wrong.argsort(descending=True, stable=True)[:MAX_CONFUSED]
            pairs = [(int(place) // num_classes, int(place) % num_classes, int(wrong[place])) for place in most]
            content["confused_pairs"] = [
                {"target": names[t], "prediction": names[p], "count": n} for t, p, n in pairs if n
            ]
        return content

    def _sample(self, row: dict[str, Tensor]) -> dict[str, Any]:
        """One of the worst samples, as it is written."""
        sample: dict[str, Any] = {"loss": float(row["loss"])}
        sample["index"] = int(row["index"]) if "index" in row else "?"
        if self.kind == "tokens":
            return sample | {"text": self.datamodule.decode(row["input"])}
        if self.kind == "classes":
            names = self._class_names(1 + max(int(row["prediction"]), int(row["target"])))
            sample |= {key: names[int(row[key])] for key in ("prediction", "target")}
            sample["probability"] = float(torch.exp(-row["loss"]))
        else:
            sample |= {key: _numbers(row[key]) for key in ("prediction", "target")}
        if row["input"].ndim == 3 and row["input"].shape[0] in (1, 3):
            sample["image"] = _png(row["input"])
        elif row["input"].ndim == 1 and row["input"].is_floating_point():
            names = getattr(self.datamodule, "feature_names", None) or [f"x{n}" for n in range(len(row["input"]))]
            sample["values"] = dict(list(zip(names, row["input"].tolist(), strict=False))[:MAX_VALUES])
        return sample

    def _generate(self, model: LightningModule) -> list[dict[str, str]]:
        """Goes on with beginnings of test windows: the most likely token, again and again."""
        assert self._prompts is not None
        length = self._prompts.shape[1]
        tokens = self._prompts
        for _ in range(GENERATED):
            logits = model(tokens[:, -2 * length :])
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
        decode = self.datamodule.decode
        return [{"prompt": decode(row[:length]), "text": decode(row[length:])} for row in tokens]


def _rounded(pairs: Tensor) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in pair] for pair in pairs.tolist()]


def _numbers(values: Tensor) -> str:
    shown: Sequence[float] = values.flatten()[:MAX_OUTPUTS].tolist()
    return ", ".join(f"{value:.3g}" for value in shown)


def _png(image: Tensor) -> str:
    """A picture ``[C, H, W]`` of any range as PNG in base 64, made smaller if it is large."""
    image = image.float()
    every = -(-max(image.shape[1:]) // MAX_SIDE)
    image = functional.avg_pool2d(image, every, ceil_mode=True) if every > 1 else image
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).permute(1, 2, 0)
    import matplotlib.image  # slow to import

    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels.expand(-1, -1, 3).numpy(), format="png")
    return base64.b64encode(file.getvalue()).decode()
