"""Multigrid training (C.-Y. Wu, R. Girshick, K. He, C. Feichtenhofer, P. Kraehenbuehl, "A Multigrid Method for
Efficiently Training Video Models", CVPR 2020, arXiv 1912.00998, section 3): mini-batches of few, fine samples and of
many, coarse ones, all about as costly. Schedule and short cycle are those of the authors' code
(facebookresearch/SlowFast)."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from leyden.data.sampler import GlobalBatchSampler

__all__ = [
    "MultigridBatchSampler",
    "MultigridPhase",
    "MultigridSchedule",
    "multigrid_schedule",
    "resample_grid",
    "short_cycle_batch_sizes",
]


class MultigridPhase(NamedTuple):
    """Epochs of one grid in the long cycle.

    Attributes:
        step: how often the learning rate was lowered.
        batch_factor: batch size, as a multiple of the usual one.
        shape: (frames, side).
        end_epoch: the first epoch after the phase.
    """

    step: int
    batch_factor: int
    shape: tuple[int, int]
    end_epoch: int


class MultigridSchedule(NamedTuple):
    """Phases of multigrid training, and its learning rates.

    Attributes:
        phases: in order; one that would be shorter than half an epoch may have none.
        lr_milestones: epochs from which on the learning rate is that of the same place in ``lr_factors``.
        lr_factors: learning rates, as multiples of the usual first one.
    """

    phases: list[MultigridPhase]
    lr_milestones: list[int]
    lr_factors: list[float]

    def phase(self, epoch: int) -> MultigridPhase:
        """Returns the phase of an epoch."""
        return next((phase for phase in self.phases if epoch < phase.end_epoch), self.phases[-1])

    def lr_factor(self, epoch: int) -> float:
        """Returns the multiple of the learning rate in an epoch."""
        return self.lr_factors[bisect_right(self.lr_milestones, epoch) - 1]


def multigrid_schedule(
    milestones: Sequence[int],
    max_epochs: int,
    shape: tuple[int, int],
    *,
    long_factors: Sequence[tuple[float, float]] = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0)),
    short_factors: Sequence[float] = (0.5, 0.5**0.5),
    epoch_factor: float = 1.5,
    gamma: float = 0.1,
) -> MultigridSchedule:
    """Makes the schedule out of that of usual training, which lowers the learning rate at some epochs.

    Until the last milestone, each step of the learning rate goes through all grids, with about as many samples per grid
    as its batches are large; the rest is fine-tuning on the last grid. The learning rate grows with the batch.

    Args:
        milestones: epochs of usual training at which the learning rate is multiplied by ``gamma``, as in
            `torch.optim.lr_scheduler.MultiStepLR`.
        max_epochs: epochs of usual training.
        shape: T frames and side S of the finest grid; images have (1, S).
        long_factors: (of T, of S), grid by grid from coarse to fine.
        short_factors: of S: the grids that the batches take in turn, before that of the long cycle; may be none.
        epoch_factor: epochs, as a multiple of ``max_epochs``.
        gamma: factor of the learning rate.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_schedule(milestones, max_epochs, shape, long_factors, epoch_factor)
    _check_factors("short_factors", short_factors)
    frames, side = shape
    grids = [(max(1, round(frames * f_t)), max(1, round(side * f_s))) for f_t, f_s in long_factors]
    factors, means = [], []
    for t, s in grids:
        multiples = [round(frames * side**2 / (t * other**2)) for other in (*(side * f for f in short_factors), s)]
        factors.append(multiples[-1])
        means.append(sum(multiples) / len(multiples))
    planned, steps = [], 0.0  # (step, grid, epochs); optimizer steps in those of a usual epoch
    for number, (begin, end) in enumerate(pairwise([0, *milestones])):
        for grid, mean in enumerate(means):
            planned.append((number, grid, (end - begin) * mean / sum(means)))
            steps += (end - begin) / sum(means)
    saving = milestones[-1] / steps
    planned.append((len(milestones), len(grids) - 1, (max_epochs - milestones[-1]) / saving * means[-1]))

    scale = max_epochs * epoch_factor / sum(epochs for _, _, epochs in planned)
    ends = [round(end) for end in accumulate(epochs * scale for _, _, epochs in planned)]
    phases = [
        MultigridPhase(number, factors[grid], grids[grid], end)
        for (number, grid, _), end in zip(planned, ends, strict=True)
    ]
    rates = [gamma**phase.step * phase.batch_factor for phase in phases]
    # the first half of the fine-tuning keeps the learning rate of the phase before it
    return MultigridSchedule(phases, [0, *ends[:-1], (ends[-2] + ends[-1]) // 2], [*rates[:-1], rates[-2], rates[-1]])


def short_cycle_batch_sizes(
    batch_size: int, size: int, base_size: int, *, factors: Sequence[float] = (0.5, 0.5**0.5)
) -> list[int]:
    """Returns the batch sizes that steps take in turn, the last being that of the long cycle's grid.

    Args:
        batch_size: of the long cycle's grid.
        size: side of the long cycle's grid.
        base_size: S, the side of the finest grid.
        factors: of S: the grids of the short cycle.

    Raises:
        ValueError: a factor is not in (0, 1], or its grid finer than that of the long cycle.
    """
    _check_factors("factors", factors)
    for factor in factors:
        if round(factor * base_size) > size:
            raise ValueError(
                f"the grids of the short cycle must not be finer than the long cycle's, of side {size}, but {factor} "
                f"of {base_size} is"
            )
    return [*(batch_size * round((size / (factor * base_size)) ** 2) for factor in factors), batch_size]


def resample_grid(input: Tensor, shape: tuple[int, int]) -> Tensor:
    """Puts images or videos on a coarser grid, by an antialiased resize and a larger stride in time.

    Args:
        input: ``[N, C, H, W]`` or ``[N, C, T, H, W]``.
        shape: frames t and side s of the new grid.

    Returns:
        ``[N, C, s, s]`` or ``[N, C, t, s, s]``; ``input`` itself if it has this shape.

    Raises:
        ValueError: ``input`` has another number of dimensions, or fewer frames.
    """
    frames, side = shape
    if input.ndim not in (4, 5):
        raise ValueError(f"input must be images [N, C, H, W] or videos [N, C, T, H, W], got shape {tuple(input.shape)}")
    if input.ndim == 4:
        return _resize(input, side)
    if frames > input.shape[2]:
        raise ValueError(f"shape must have at most the {input.shape[2]} frames of the input, got {frames}")
    stride = input.shape[2] // frames
    clip = input[:, :, : frames * stride : stride]  # [N, C, t, H, W]
    return _resize(clip.transpose(1, 2).flatten(0, 1), side).unflatten(0, (len(input), frames)).transpose(1, 2)


class MultigridBatchSampler(GlobalBatchSampler):
    """Gives the steps of an epoch sizes in turn, by the schedule of multigrid training.

    Sizes and samples of a step are a pure function of (seed, epoch, step), so that there is nothing to save beside what
    `GlobalBatchSampler` saves. The length is exact.

    Args:
        num_samples: size of the training set.
        batch_size: that of usual training, for which those of the schedule stand.
        batch_sizes: (epoch, sizes) with growing epochs: before this epoch, the steps of each epoch have these sizes in
            turn, over all processes and micro-batches; the last also hold from then on.
        **kwargs: as in `GlobalBatchSampler`.

    Attributes:
        place: of the size, among those of the epoch, that the batch handed out last has.

    Raises:
        ValueError: a size is below 1 or cannot be shared equally, or an epoch would have no step.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, batch_sizes: Sequence[tuple[int, Sequence[int]]], **kwargs: Any
    ) -> None:
        self.batch_sizes = batch_sizes
        self.place = 0
        super().__init__(num_samples, batch_size, **kwargs)

    def resize(self, batch_size: int, accumulate: int | None = None) -> None:
        """Refuses.

        Raises:
            MisconfigurationException: always.
        """
        raise MisconfigurationException("the batch sizes of multigrid training are those of its schedule, and not set")

    def __len__(self) -> int:
        """Micro-batches of this epoch for one process."""
        return self._num_steps(self._sizes()) * self.accumulate

    def advance(self) -> None:
        """Counts one more micro-batch as handed out."""
        self.place = self._handed_out // self.accumulate % len(self._sizes())
        super().advance()

    def _sizes(self) -> Sequence[int]:
        return next((sizes for end, sizes in self.batch_sizes if self.epoch < end), self.batch_sizes[-1][1])

    def _step_size(self, step: int) -> int:
        sizes = self._sizes()
        return sizes[step % len(sizes)]

    def _num_steps(self, sizes: Sequence[int]) -> int:
        cycles, rest = divmod(len(self._epoch_indices()), sum(sizes))
        whole = bisect_right(list(accumulate(sizes)), rest)
        tail = rest - sum(sizes[:whole])
        return cycles * len(sizes) + whole + (tail > 0 and not self.drop_last)

    def _check(self, batch_size: int, accumulate: int) -> None:
        pieces = self.num_replicas * accumulate
        for _, sizes in self.batch_sizes:
            for size in sizes:
                if size < 1 or size % pieces:
                    raise ValueError(
                        f"batch_sizes must be multiples of {pieces}, to be shared equally by {self.num_replicas} "
                        f"processes x {accumulate} accumulated micro-batches, got {size}"
                    )
            if self.drop_last and sizes[0] > self.num_samples:
                raise ValueError(
                    f"batch_sizes must leave each epoch a step, but the first of {list(sizes)} is larger than the "
                    f"{self.num_samples} training samples"
                )
            tail = 0 if self.drop_last else self.num_samples % sum(sizes) % pieces
            if tail:
                raise ValueError(
                    f"the last batch of {self.num_samples} samples in turns of {list(sizes)} cannot be shared equally "
                    f"by {self.num_replicas} processes x {accumulate} accumulated micro-batches: set drop_last=True"
                )


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    return nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _check_schedule(
    milestones: Sequence[int],
    max_epochs: int,
    shape: tuple[int, int],
    long_factors: Sequence[tuple[float, float]],
    epoch_factor: float,
) -> None:
    epochs = [0, *milestones, max_epochs]
    if not milestones or any(later <= earlier for earlier, later in pairwise(epochs)):
        raise ValueError(
            f"milestones must be one or more growing epochs in 1..{max_epochs - 1} (below max_epochs), "
            f"got {list(milestones)}"
        )
    if min(shape) < 1:
        raise ValueError(f"shape must be (frames, side), both at least 1, got {tuple(shape)}")
    if not long_factors:
        raise ValueError("long_factors must name at least one grid, got none")
    _check_factors("long_factors", [factor for pair in long_factors for factor in pair])
    if epoch_factor <= 0.0:
        raise ValueError(f"epoch_factor must be positive, got {epoch_factor}")


def _check_factors(name: str, factors: Sequence[float]) -> None:
    if not all(0.0 < factor <= 1.0 for factor in factors):
        raise ValueError(f"{name} must lie in (0, 1], got {list(factors)}")
