"""Text as windows of tokens, for language models: Python's own help texts, and text files."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.batch import Batch
from leyden.data.module import DataModule
from leyden.data.teacher_samples import TeacherSamples

__all__ = ["PydocTopics", "TextDataModule", "TextFile", "TokenWindows"]


class TokenWindows(Dataset):
    """Windows of a long sequence: ``input`` is ``tokens[i : i + context]``, ``target`` the same, one token later.

    Args:
        tokens: uint8 or int32 ``[T]``; kept as they are, handed out as int64.
        context: tokens of a window.
        stride: tokens between the starts of two windows.

    Raises:
        ValueError: ``context`` or ``stride`` is below 1, or there is no whole window.
    """

    def __init__(self, tokens: Tensor, context: int, stride: int) -> None:
        if context < 1 or stride < 1:
            raise ValueError(f"context and stride must be at least 1, got {context} and {stride}")
        if len(tokens) < context + 1:
            raise ValueError(f"{len(tokens)} tokens are too few: a window takes context + 1 = {context + 1}")
        self.tokens = tokens
        self.context = context
        self.stride = stride

    def __len__(self) -> int:
        """Number of windows."""
        return (len(self.tokens) - self.context - 1) // self.stride + 1

    def __getitem__(self, index: int) -> Batch:
        """Returns one window, int64 ``[context]`` per key."""
        return {key: rows[0] for key, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        """Returns a batch of windows, int64 ``[N, context]`` per key."""
        starts = torch.tensor(indices, dtype=torch.int64).unsqueeze(-1) * self.stride  # [N, 1]
        windows = self.tokens[starts + torch.arange(self.context + 1)].to(torch.int64)  # [N, context + 1]
        return {"input": windows[:, :-1], "target": windows[:, 1:]}


class TextDataModule(DataModule):
    """A text, cut into three: its beginning to train on, then validation, and its end for the test.

    Samples: as in `TokenWindows`. Validation and test windows do not overlap, so every token is predicted once.

    Args:
        source: the text, UTF-8.
        context: tokens of a window.
        stride: tokens between the starts of two training windows; ``context`` if None.
        tokenizer: ``"byte"``: the 256 bytes of UTF-8; ``"char"``: the characters that occur, in the order of Unicode.
        val_fraction: share of the tokens for validation.
        test_fraction: share of the tokens for the test.
        samples: windows that a trained network samples, beside those of the text, to train on.
        batch_size: windows of an optimizer step.
        **kwargs: as in `DataModule`.

    Attributes:
        vocab_size: number of different tokens.
        bytes_per_token: bytes of UTF-8 that a token stands for, on average over the text.

    Raises:
        ValueError: an argument is out of range, the text is too short for three parts or no UTF-8, or there is an
            ``order`` beside ``samples``, which have their own.
    """

    def __init__(
        self,
        source: bytes,
        *,
        context: int = 128,
        stride: int | None = None,
        tokenizer: Literal["byte", "char"] = "byte",
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        samples: TeacherSamples | None = None,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        if tokenizer not in ("byte", "char"):
            raise ValueError(f"tokenizer must be 'byte' or 'char', got {tokenizer!r}")
        if samples is not None and self.order is not None:
            raise ValueError("samples are mixed with the text in an order of their own: leave order out")
        self.context = context
        self.stride = context if stride is None else stride
        self.tokenizer = tokenizer
        self.samples = samples
        if tokenizer == "byte":
            tokens = torch.frombuffer(bytearray(source), dtype=torch.uint8) if source else torch.zeros(0)
            self.vocab_size = 256
        else:
            self._characters, numbers = np.unique(_code_points(source), return_inverse=True)
            self.vocab_size = len(self._characters)
            tokens = torch.from_numpy(numbers).to(torch.uint8 if self.vocab_size <= 256 else torch.int32)
        self.bytes_per_token = len(source) / max(1, len(tokens))
        self._parts = self._split(tokens, {"val": val_fraction, "test": test_fraction})

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = dict(self._parts)
        if self.samples is not None:
            self.order = self.samples.order
            parts["train"] = self.samples.behind(self._parts["train"], vocab_size=self.vocab_size, seed=self.seed)
        return parts

    def encode(self, text: str) -> Tensor:
        """Returns the tokens of a text, int64 ``[T]``.

        Raises:
            ValueError: with ``tokenizer="char"``, a character that the source does not hold.
        """
        if self.tokenizer == "byte":
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        points = _code_points(text.encode())
        strange = points[~np.isin(points, self._characters)]
        if len(strange):
            raise ValueError(f"the character {chr(strange[0])!r} is not among the {self.vocab_size} of the source")
        return torch.from_numpy(np.searchsorted(self._characters, points))

    def decode(self, tokens: Tensor) -> str:
        """Returns the text of tokens ``[T]``; bytes that are no UTF-8 become the replacement character."""
        numbers = tokens.cpu().numpy()
        if self.tokenizer == "byte":
            return numbers.astype(np.uint8).tobytes().decode(errors="replace")
        return "".join(map(chr, self._characters[numbers]))

    def _split(self, tokens: Tensor, fractions: dict[str, float]) -> dict[str, TokenWindows]:
        sizes = {name: round(len(tokens) * fraction) for name, fraction in fractions.items()}
        sizes = {"train": len(tokens) - sum(sizes.values()), **sizes}
        for name, size in sizes.items():
            if size < self.context + 1:
                raise ValueError(
                    f"the {name} part has {max(size, 0)} of {len(tokens)} tokens, but a window takes context + 1 = "
                    f"{self.context + 1}: change val_fraction and test_fraction, shorten context or take a longer text"
                )
        pieces = dict(zip(sizes, tokens.split(list(sizes.values())), strict=True))
        strides = {"train": self.stride, "val": self.context, "test": self.context}
        return {name: TokenWindows(piece, self.context, strides[name]) for name, piece in pieces.items()}


class PydocTopics(TextDataModule):
    """The help texts of this Python's interpreter (``pydoc_data.topics``), about 460,000 letters of English on Python.

    The texts differ a little between versions of Python; losses are to be compared within one version only.

    Args:
        **kwargs: as in `TextDataModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        from pydoc_data.topics import topics

        super().__init__(source="".join(topics[name] for name in sorted(topics)).encode(), **kwargs)


class TextFile(TextDataModule):
    """A text file.

    Args:
        path: the file; UTF-8, unless ``tokenizer="byte"``, which takes any file.
        **kwargs: as in `TextDataModule`.

    Raises:
        ValueError: there is no such file.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        if not Path(path).is_file():
            raise ValueError(f"path must name a text file, but there is no file {path}")
        super().__init__(source=Path(path).read_bytes(), **kwargs)
        self.path = path


def _code_points(source: bytes) -> np.ndarray:
    try:
        return np.frombuffer(source.decode().encode("utf-32-le"), dtype=np.uint32)
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer='char' needs UTF-8, but the text is not: {error}") from error
