"""Digits with two questions about each, for methods that learn several tasks at once."""

from typing import Any, cast

from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits, symmetric_label_noise

__all__ = ["DigitQuestions"]

_QUESTIONS = ("odd", "large")


class DigitQuestions(Digits):
    """`Digits` and the answers (0 or 1) to two questions: whether they are odd, and whether they are large.

    Samples also have ``odd`` and ``large`` (5 or more), int64.

    Args:
        answer_noise: share of the training answers that are replaced by the other one, by question.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: ``answer_noise`` has another question, or a share outside of [0, 1].
    """

    def __init__(self, *, answer_noise: dict[str, float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answer_noise = answer_noise or {}
        for question, share in self.answer_noise.items():
            if question not in _QUESTIONS or not 0.0 <= share <= 1.0:
                raise ValueError(f"answer_noise must map 'odd' or 'large' to shares in [0, 1], got {question}: {share}")

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for name, part in super().datasets().items():
            tensors, sources = cast(TensorDictDataset, part).tensors, cast(TensorDictDataset, part).sources
            digit = tensors.get("clean_target", tensors["target"])
            answers = {"odd": digit % 2, "large": (digit >= 5).long()}
            if name == "train":
                for question, share in self.answer_noise.items():
                    seed = self.split_seed + _QUESTIONS.index(question)
                    answers[question] = symmetric_label_noise(answers[question], share, 2, seed=seed)
            parts[name] = TensorDictDataset(tensors | answers, sources=sources)
        return parts
