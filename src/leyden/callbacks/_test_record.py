"""What a test shows: which classes were confused, pairs of target and prediction, text, and the worst samples."""

import base64
import io
import math
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
        self._worst: list[tuple[float, Batch]] = []  # the greatest loss first
        self._prompts: Tensor | None = None  # [P, T]
        self._num_samples = 0

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch.

        Args:
            logits: output of the network.
            batch: with ``target``, and ``input`` and ``index`` where they are tensors.
        """
        target = batch.get("target")
        kind = None if not isinstance(target, Tensor) else self._kind_of(logits, target)
        if kind is None or target is None:
            return
        self.kind = kind
        self._num_samples += len(target)
        logits = logits.float()
        shown = {key: batch[key] for key in ("input", "index") if isinstance(batch.get(key), Tensor)}
        if kind == "classes":
            target = target.argmax(-1) if target.ndim == 2 else target
            known = (target >= 0) & (target < logits.shape[-1])  # others mark samples without a class
            self._add_classes(logits[known], target[known], {key: value[known] for key, value in shown.items()})
        elif kind == "numbers":
            logits, target = logits.flatten(1), target.float().flatten(1)
            self._pairs.append((target[:, :MAX_OUTPUTS], logits[:, :MAX_OUTPUTS]))
            self._keep_worst((logits - target).square().mean(-1), {"prediction": logits, "target": target, **shown})
        else:
            tokens = batch["input"]
            if self._prompts is None:
                self._prompts = tokens[[0, len(tokens) // 2, -1], : max(1, tokens.shape[1] // 2)]
            loss = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # [N, T], 0 if ignored
            self._keep_worst(loss.sum(-1) / (target != -100).sum(-1).clamp(min=1), shown)

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
            "worst": [(loss, {key: value.cpu() for key, value in row.items()}) for loss, row in self._worst],
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
        worst = sorted((sample for part in parts for sample in part["worst"]), key=_first, reverse=True)
        number = max(len(part["worst"]) for part in parts)
        if self.kind == "classes":
            content |= self._confusion(sum(part["counts"] for part in parts))
        elif self.kind == "numbers":
            target, prediction = (torch.cat([part["pairs"][side] for part in parts]) for side in range(2))
            every = -(-len(target) // MAX_POINTS)
            both = torch.stack([target, prediction], -1)[::every]  # [S, D, 2]
            content["pairs"] = [_rounded(both[:, column]) for column in range(both.shape[1])]
        content["worst"] = [self._sample(loss, row) for loss, row in worst[:number]]
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

    def _add_classes(self, logits: Tensor, target: Tensor, shown: Batch) -> None:
        num_classes = logits.shape[-1]
        prediction = logits.argmax(-1)
        counts = torch.bincount(target * num_classes + prediction, minlength=num_classes**2)
        self._counts = counts if self._counts is None else self._counts + counts
        loss = -logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        self._keep_worst(loss, {"prediction": prediction, "target": target, **shown})

    def _keep_worst(self, loss: Tensor, rows: Batch) -> None:
        """Keeps the samples with the greatest loss of all so far; their inputs may differ in size."""
        number = min(self.num_worst, WORST_TEXTS if self.kind == "tokens" else self.num_worst)
        losses, places = loss.nan_to_num(nan=torch.inf).topk(min(number, len(loss)))
        for value, place in zip(losses.tolist(), places.tolist(), strict=True):
            if len(self._worst) == number and value <= self._worst[-1][0]:
                break
            self._worst.append((value, {key: tensor[place] for key, tensor in rows.items()}))
            self._worst = sorted(self._worst, key=_first, reverse=True)[:number]

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

    def _sample(self, loss: float, row: Batch) -> dict[str, Any]:
        """One of the worst samples, as it is written."""
        sample: dict[str, Any] = {"loss": loss, "index": int(row["index"]) if "index" in row else "?"}
        if self.kind == "tokens":
            return sample | {"text": self.datamodule.decode(row["input"])}
        if self.kind == "classes":
            names = self._class_names(1 + max(int(row["prediction"]), int(row["target"])))
            sample |= {key: names[int(row[key])] for key in ("prediction", "target")}
            sample["probability"] = math.exp(-loss)
        else:
            sample |= {key: _numbers(row[key]) for key in ("prediction", "target")}
        if "input" not in row:
            return sample
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


def _first(sample: tuple[float, Batch]) -> float:
    return sample[0]


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
