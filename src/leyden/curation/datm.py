"""DATM: a few images and soft labels, on which a network moves as it does on all data (Z. Guo et al., "Towards Lossless
Dataset Distillation via Difficulty-Aligned Trajectory Matching", 2023, arXiv 2310.05773; authors' code:
NUS-HPC-AI-Lab/DATM).

What differs from the authors' code: nothing augments the images, the rate of the student stays positive, and images
that no expert names rightly are taken where a class has no others.
"""

from collections.abc import Iterator

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from leyden.callbacks.expert_trajectory import TrajectoryFile, read_trajectory
from leyden.core.network import Network
from leyden.core.random import sample_keys, uniform
from leyden.curation.curation import Curation
from leyden.data.dataset import all_samples
from leyden.data.module import DataModule
from leyden.data.splits import shuffled_order
from leyden.losses.trajectory_matching import trajectory_matching_loss
from leyden.methods.trajectory_matching import correct_logit_average, expert_start_bound, unroll_sgd

__all__ = ["DATM"]

MIN_LR = 1e-6  # of the student


class _Distilled(nn.Module):
    def __init__(self, images: Tensor, labels: Tensor, lr: float) -> None:
        super().__init__()
        self.images = nn.Parameter(images)  # [S, ...]
        self.labels = nn.Parameter(labels)  # before softmax, [S, C]
        self.lr = nn.Parameter(torch.tensor(lr))
        self.skipped: Tensor
        self.register_buffer("skipped", torch.tensor(0))


class DATM(Curation):
    """Distils the training set: images, their labels and a learning rate are trained.

    In each step, plain SGD on them starts from an expert's weights after some epoch; the loss says how far it ends from
    where the expert was some epochs later. Few images take what experts learn early, which is easy; many need what they
    learn late, so that the epochs are chosen by their number (the paper's for CIFAR-10: below 4 for 1 image per class,
    below 20 for 10, below 40 for 50; the authors' rates are for whitened CIFAR).

    Args:
        network: of the experts; its own weights are not used.
        experts: checkpoints of fits with `leyden.callbacks.ExpertTrajectory`, by SGD without momentum.
        ipc: images per class.
        iterations: number of steps.
        expert_epochs: epochs of the expert that the student shall make in its steps.
        synthetic_steps: of the student.
        batch_size: of the student; all images if None.
        lr_images: learning rate of the images.
        lr_labels: learning rate of the labels.
        lr_lr: learning rate of the student's learning rate.
        student_lr: the student's learning rate at the beginning.
        min_start: first epoch from which the student may start.
        start: epoch below which it starts at the beginning.
        max_start: epoch below which it starts from ``expansion_end`` on.
        expansion_end: number of steps in which ``start`` grows to ``max_start``.
        threshold: of the loss; a step of a larger one changes nothing.
        device: on which it runs.

    Raises:
        ValueError: a number is out of range, there are no experts, or the network has BatchNorm.
    """

    numbers = ("student_lr",)

    def __init__(
        self,
        network: Network,
        experts: TrajectoryFile | list[TrajectoryFile],
        *,
        ipc: int = 10,
        iterations: int = 10_000,
        expert_epochs: int = 2,
        synthetic_steps: int = 80,
        batch_size: int | None = None,
        lr_images: float = 100.0,
        lr_labels: float = 2.0,
        lr_lr: float = 1e-5,
        student_lr: float = 0.01,
        min_start: int = 0,
        start: int = 10,
        max_start: int = 20,
        expansion_end: int = 1000,
        threshold: float = 1.0,
        device: str = "cpu",
    ) -> None:
        counts = {"ipc": ipc, "iterations": iterations, "expert_epochs": expert_epochs}
        counts |= {"synthetic_steps": synthetic_steps, "expansion_end": expansion_end}
        if batch_size is not None:
            counts["batch_size"] = batch_size
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        rates = {"lr_images": lr_images, "lr_labels": lr_labels, "lr_lr": lr_lr}
        for name, rate in rates.items():
            if not rate >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {rate}")
        if not (student_lr > 0.0 and threshold > 0.0):
            raise ValueError(f"student_lr and threshold must be positive, got {student_lr} and {threshold}")
        if not 0 <= min_start < start <= max_start:
            raise ValueError(f"0 <= min_start < start <= max_start must hold, got {min_start}, {start} and {max_start}")
        if any(isinstance(module, _BatchNorm) for module in network.modules()):
            raise ValueError("network must have no BatchNorm, whose statistics a student of few images does not share")
        self.network = network
        self.experts = [experts] if isinstance(experts, str) else list(experts)
        if not self.experts:
            raise ValueError("experts must be at least one file, got an empty list")
        self.ipc = ipc
        self.iterations = iterations
        self.expert_epochs = expert_epochs
        self.synthetic_steps = synthetic_steps
        self.batch_size = batch_size
        self.lr_images, self.lr_labels, self.lr_lr = lr_images, lr_labels, lr_lr
        self.student_lr = student_lr
        self.min_start, self.start, self.max_start = min_start, start, max_start
        self.expansion_end = expansion_end
        self.threshold = threshold
        self.device = torch.device(device)

    @torch.enable_grad()
    def __call__(self, data: DataModule) -> dict[str, Tensor]:
        """Returns ``input``, ``target`` (probabilities ``[S, C]``) and the number ``student_lr``.

        Raises:
            ValueError: the experts are of another network or too short, the targets are no class numbers, or a class
                has too few samples.
        """
        network = self.network.eval().to(self.device)
        experts = [self._read_expert(path) for path in self.experts]
        made = _Distilled(*self._initial(network, experts, data), self.student_lr).to(self.device)
        optimizer = SGD(
            [
                {"params": [made.images], "lr": self.lr_images, "momentum": 0.5},
                {"params": [made.labels], "lr": self.lr_labels, "momentum": 0.9},
                {"params": [made.lr], "lr": self.lr_lr, "momentum": 0.5},
            ]
        )
        for step in self.steps(self.iterations, {"made": made, "optimizer": optimizer}):
            start, goal, batches = self._task(step, experts, len(made.images), data.seed)
            final = unroll_sgd(network, start, made.images, made.labels, made.lr, batches)
            loss = trajectory_matching_loss(final, start, goal)
            optimizer.zero_grad()
            loss.backward()
            if loss.detach() <= self.threshold:  # not if it is NaN
                optimizer.step()
                made.lr.data.clamp_(min=MIN_LR)
            else:
                made.skipped += 1
        skipped = int(made.skipped)
        if skipped == self.iterations:
            raise ValueError(
                f"every step had a loss above threshold={self.threshold:g}: try another student_lr or synthetic_steps"
            )
        images, labels, lr = (parameter.detach() for parameter in made.parameters())
        rank_zero_info(f"DATM: {skipped} of {self.iterations} steps skipped, the student's rate is {lr:.4g}")
        return {"input": images, "target": labels.softmax(-1), "student_lr": lr}

    def _read_expert(self, path: TrajectoryFile) -> dict[str, Tensor]:
        trajectory = {name: tensor.to(self.device) for name, tensor in read_trajectory(path).items()}
        own = {name: tuple(p.shape) for name, p in self.network.named_parameters()}
        if own != {name: tuple(tensor.shape[1:]) for name, tensor in trajectory.items()}:
            raise ValueError(f"{path} is the trajectory of another network than {type(self.network).__name__}")
        times = len(next(iter(trajectory.values())))
        if times < self.max_start + self.expert_epochs:
            raise ValueError(
                f"max_start={self.max_start} and expert_epochs={self.expert_epochs} need experts of "
                f"{self.max_start + self.expert_epochs - 1} epochs, but {path} has {times - 1}"
            )
        return trajectory

    @torch.no_grad()
    def _initial(self, network: nn.Module, experts: list[dict[str, Tensor]], data: DataModule) -> tuple[Tensor, Tensor]:
        """Images that an expert names rightly, class by class, and the logits of the experts that do."""
        samples = all_samples(data.dataset("train"))
        inputs, targets = samples["input"].to(self.device), samples["target"].to(self.device)
        if targets.ndim != 1 or targets.is_floating_point():
            raise ValueError(f"DATM needs class numbers [S] as targets, got {targets.dtype} {tuple(targets.shape)}")
        last = [{name: tensor[-1] for name, tensor in expert.items()} for expert in experts]
        logits = torch.stack([functional_call(network, params, (inputs,)) for params in last])  # [E, S, C]
        order = shuffled_order(len(targets), data.seed).to(self.device)
        wrong = (logits.argmax(-1) != targets).all(0)[order]
        order = order[wrong.to(torch.int8).argsort(stable=True)]  # those that an expert names rightly first
        classes, counts = targets.unique(return_counts=True)
        if counts.min() < self.ipc:
            raise ValueError(f"ipc={self.ipc} is more than the smallest class has, {int(counts.min())} samples")
        rows = torch.cat([order[targets[order] == number][: self.ipc] for number in classes.tolist()])
        return inputs[rows].float(), correct_logit_average(logits[:, rows], targets[rows])

    def _task(
        self, step: int, experts: list[dict[str, Tensor]], num_images: int, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
        """Parameters to start from, those to reach, and the batches between: a function of seed and step alone."""
        round_, number = divmod(step, len(experts))  # all experts in a new order, again and again
        order = uniform(sample_keys(seed, round_, torch.arange(len(experts)))).argsort(stable=True)
        expert = experts[int(order[number])]
        bound = expert_start_bound(step, current=self.start, maximum=self.max_start, expansion_end=self.expansion_end)
        draw = float(uniform(sample_keys(seed, step, torch.tensor([0])), stream=1))
        time = self.min_start + int(draw * (bound - self.min_start))
        start, target = (
            {name: tensor[time + epochs] for name, tensor in expert.items()} for epochs in (0, self.expert_epochs)
        )
        keys = sample_keys(seed, step, torch.arange(num_images))
        batches = self._batches(keys)
        return start, target, [next(batches).to(self.device) for _ in range(self.synthetic_steps)]

    def _batches(self, keys: Tensor) -> Iterator[Tensor]:
        stream = 2
        while True:
            yield from uniform(keys, stream=stream).argsort(stable=True).split(self.batch_size or len(keys))
            stream += 1
