"""Meta-DMoE (T. Zhong, Z. Chi, L. Gu, Y. Wang, Y. Yu, J. Tang, "Meta-DMoE: Adapting to Domain Shift by
Meta-Distillation from Mixture-of-Experts", 2022, arXiv 2210.03885, algorithm 1; authors' code: n3il666/Meta-DMoE).

The authors train experts, aggregator and student one after the other, and then meta-train student and aggregator; here
the first three learn side by side, in one fit. As in their code, one expert is left out of the targets in
meta-training only, and nothing has dropout or measures batch statistics there. Their learning rates of meta-training
fall in a way that depends on the data set; here they are constant.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.evaluating import evaluating
from leyden.core.method import OptimizerCallable
from leyden.core.network import Network, Outputs
from leyden.data.module import DataModule
from leyden.methods.classification import Classification
from leyden.nn.expert_aggregator import ExpertAggregator, exclude_expert
from leyden.nn.inner_sgd_step import inner_sgd_step

__all__ = ["MetaDMoE"]


class MetaDMoE(Classification):
    """Learns to be adapted to a new domain by one step towards what experts of other domains see in it.

    At first, network, experts (each on its domains: those of number ``k`` modulo K) and aggregator learn to classify.
    Then, in meta-training, the first samples of a batch, which are of one domain (`leyden.data.DomainBatches`), move
    the features of the network by one step towards those that the aggregator makes of all experts but that of the
    domain; the loss is that of the other samples behind this step, and trains network and aggregator through it.

    Validation and test, but for those before meta-training, adapt a copy of the network to each domain, by its first
    samples without their labels, and use it for all of its samples.

    Args:
        network: the student.
        experts: K, copies of the network as it starts; or networks of the same feature size.
        aggregator: joins their features.
        pretrain: share of the steps before meta-training; with 1 there is none.
        support: samples that a network is adapted by; of a training batch, as each process has it.
        inner_lr: size of the step of adaptation.
        student_lr: learning rate of the network in meta-training; before it, that of the optimizer holds for all.
        aggregator_lr: that of the aggregator.
        optimizer: see `Method`.
        **kwargs: see `Classification`; there can be no schedule.

    Raises:
        ValueError: an argument is out of range, feature sizes differ, or there is a schedule.
    """

    _meta_step = 0

    def __init__(
        self,
        network: Network,
        experts: int | Sequence[Network],
        aggregator: ExpertAggregator,
        *,
        pretrain: float = 0.5,
        support: int = 24,
        inner_lr: float = 1e-3,
        student_lr: float = 1e-4,
        aggregator_lr: float = 1e-6,
        optimizer: OptimizerCallable = torch.optim.Adam,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, optimizer=optimizer, **kwargs)
        experts = [deepcopy(network) for _ in range(experts)] if isinstance(experts, int) else list(experts)
        if len(experts) < 2:
            raise ValueError(f"experts must be at least 2, because one is left out, got {len(experts)}")
        dims = {network.feature_dim, aggregator.dim, *(expert.feature_dim for expert in experts)}
        if len(dims) > 1:
            raise ValueError(f"network, experts and aggregator must have one size of features, got {sorted(dims)}")
        if not 0.0 <= pretrain <= 1.0:
            raise ValueError(f"pretrain must lie in [0, 1], got {pretrain}")
        if support < 1:
            raise ValueError(f"support must be at least 1, got {support}")
        for name, value in (("inner_lr", inner_lr), ("student_lr", student_lr), ("aggregator_lr", aggregator_lr)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.scheduler is not None:
            raise ValueError("scheduler must be null: learning rates are constant before and in meta-training")
        self.pretrain = pretrain
        self.support = support
        self.inner_lr = inner_lr
        self.student_lr = student_lr
        self.aggregator_lr = aggregator_lr
        self.attach("experts", nn.ModuleList(experts))
        self.attach("aggregator", aggregator)
        # classifies what the aggregator makes, until meta-training
        self.attach("readout", nn.Sequential(nn.LayerNorm(aggregator.dim), deepcopy(network.head)))
        self._adapted_params: dict[str, Tensor] = {}  # of the network's features, in a step of meta-training
        self._adapted: dict[int, Network] = {}  # by domain, in an evaluation

    # ---- life of a fit

    def configure_model(self) -> None:
        """Checks that parameters are whole.

        Raises:
            MisconfigurationException: the strategy shards them.
        """
        if self.device_mesh is not None:
            raise MisconfigurationException(
                "MetaDMoE differentiates by whole parameters, but the strategy shards them: train with DDP"
            )

    def setup(self, stage: str) -> None:
        """Checks the data.

        Raises:
            MisconfigurationException: they are of another kind, or a batch has no sample behind those to adapt by.
        """
        super().setup(stage)
        if not isinstance(self.datamodule, DataModule):
            raise MisconfigurationException(
                "MetaDMoE adapts to the domains of a data set and needs a leyden.data.DataModule, such as "
                f"RotatedDigits, got {type(self.datamodule).__name__}"
            )
        if stage == "fit" and self.pretrain < 1.0:
            rows = self.datamodule.batch_size // (self.trainer.world_size * self.trainer.accumulate_grad_batches)
            self._check_rows(rows)

    def configure_optimizers(self) -> Any:
        """Plans meta-training, and its learning rates."""
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise MisconfigurationException(
                "MetaDMoE shares out the steps of the fit: set trainer.max_epochs or trainer.max_steps"
            )
        self._meta_step = round(self.pretrain * total_steps)
        optimizer = cast(Optimizer, super().configure_optimizers())
        rates = dict.fromkeys(self.parameters(), optimizer.defaults["lr"])  # also of callbacks' own parts
        rates |= dict.fromkeys(self.network.parameters(), self.student_lr)
        rates |= dict.fromkeys(self.attached["aggregator"].parameters(), self.aggregator_lr)
        rates |= dict.fromkeys(self._resting, 0.0)

        def schedule(group: dict[str, Any]) -> Callable[[int], float]:
            factor = rates[group["params"][0]] / optimizer.defaults["lr"]
            return lambda step: 1.0 if step < self._meta_step else factor

        scheduler = LambdaLR(optimizer, [schedule(group) for group in optimizer.param_groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def phase(self) -> str:
        """``"pretrain"`` or ``"meta"``."""
        return "pretrain" if self.pretrain == 1.0 or self.global_step < self._meta_step else "meta"

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begins meta-training with a new optimizer state.

        Raises:
            MisconfigurationException: the first batch of an epoch is of several domains.
        """
        if self.phase != "meta":
            return
        if self.global_step == self._meta_step:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        if batch_idx == 0 and "domain" in batch and (batch["domain"] != batch["domain"][0]).any():
            raise MisconfigurationException(
                "meta-training needs batches of one domain: set data.domain_batches, or the order of the data to a "
                "leyden.data.DomainBatches"
            )

    # ---- the step

    def transform_batch(self, batch: Batch) -> Batch:
        """In meta-training, makes the step of adaptation by the first samples, and returns the others.

        It is made here because the values of parametrisations are kept from `compute` on.
        """
        batch = super().transform_batch(batch)
        if self.phase == "meta":
            require_keys(batch, "domain", user="MetaDMoE")
            self._check_rows(len(batch["input"]))
            expert = batch["domain"][: self.support] % len(self._experts)
            with evaluating(self.network), evaluating(self.attached):
                self._adapted_params = self._adapt_params(batch["input"][: self.support], expert, create_graph=True)
            batch = {key: value[self.support :] for key, value in batch.items()}
        return batch

    def terms_of(self, batch: Batch) -> tuple[Outputs, Terms]:
        """Returns outputs and loss terms behind the step of adaptation, also of what callbacks compute once more."""
        try:
            return super().terms_of(batch)
        finally:
            self._adapted_params = {}

    def compute(self, batch: Batch) -> Outputs:
        """Runs the network: as it is, behind the step of adaptation, or adapted to the domains of an evaluation."""
        if not self.training:
            return self._evaluated(batch) if self._adapted else super().compute(batch)
        if self._adapted_params:
            with evaluating(self.network):
                features = functional_call(_Features(self.network), self._adapted_params, (batch["input"],))
                return Outputs(logits=self.network.head(features), features=features, extra={"meta": True})
        require_keys(batch, "domain", user="MetaDMoE")
        outputs = super().compute(batch)
        experts = self._experts
        features = [expert.features(batch["input"]) for expert in experts]
        logits = torch.stack([expert.head(f) for expert, f in zip(experts, features, strict=True)], 1)  # [N, K, C]
        own = (batch["domain"] % len(experts))[:, None, None].expand(-1, 1, logits.shape[-1])
        joined = self.attached["aggregator"](torch.stack(features, 1).detach())
        outputs.extra |= {
            "expert_logits": logits.gather(1, own).squeeze(1),
            "aggregator_logits": self.attached["readout"](joined),
        }
        return outputs

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the network's loss as ``task``; before meta-training also those of experts and aggregator."""
        terms = super().loss_terms(batch, outputs)
        for name in ("expert", "aggregator"):
            if f"{name}_logits" in outputs.extra:
                logits = outputs.extra[f"{name}_logits"]
                terms[name] = super().loss_terms(batch, Outputs(logits=logits))["task"]
        if "meta" in outputs.extra:  # DDP wants all parameters to take part
            terms["task"] = terms["task"] + 0.0 * torch.stack([p.sum() for p in self._resting]).sum()
        return terms

    # ---- adaptation

    def adapt(self, support: Tensor) -> Network:
        """Returns a copy of the network that is adapted to a domain, in eval mode and frozen.

        Args:
            support: inputs ``[S, ...]`` of the domain.
        """
        # an evaluation's inference mode would keep no graph, and its tensors could be in none
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.network), evaluating(self.attached):
            params = self._adapt_params(support.to(self.device, copy=True), create_graph=False)
            copy = deepcopy(self.network).eval().requires_grad_(False)
            copy.load_state_dict(
                {name.removeprefix("network."): p.detach() for name, p in params.items()}, strict=False
            )
        return copy

    def on_validation_start(self) -> None:
        """Adapts copies of the network to the domains."""
        self._adapt_to_domains("val")

    def on_test_start(self) -> None:
        """Adapts copies of the network to the domains."""
        self._adapt_to_domains("test")

    def on_validation_end(self) -> None:
        """Forgets the copies."""
        self._adapted = {}

    def on_test_end(self) -> None:
        """Forgets the copies."""
        self._adapted = {}

    # ---- inner workings

    @property
    def _experts(self) -> list[Network]:
        return [cast(Network, expert) for expert in cast(nn.ModuleList, self.attached["experts"])]

    @property
    def _resting(self) -> list[nn.Parameter]:
        """What does not learn in meta-training."""
        return [*self.attached["experts"].parameters(), *self.attached["readout"].parameters()]

    def _check_rows(self, rows: int) -> None:
        if rows <= self.support:
            raise MisconfigurationException(
                f"support={self.support} leaves nothing of a batch of {rows} samples (of one process, and one "
                "accumulated micro-batch) to learn from: make it smaller, or data.batch_size larger"
            )

    def _adapt_params(
        self, support: Tensor, excluded: Tensor | None = None, *, create_graph: bool
    ) -> dict[str, Tensor]:
        """Parameters of the network's features behind a step, in float32, towards those of all experts but one."""
        of_head = set(self.network.head.parameters())
        network = _Features(self.network)
        params: dict[str, Tensor] = {
            name: p for name, p in network.named_parameters() if p.requires_grad and p not in of_head
        }
        # the math kernel of attention can be differentiated twice
        with torch.autocast(self.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                features = torch.stack([expert.features(support) for expert in self._experts], 1)  # [S, K, D]
                features = features if excluded is None else exclude_expert(features, excluded)
            target = self.attached["aggregator"](features)
            loss = (functional_call(network, params, (support,)) - target).square().mean()
            return inner_sgd_step(params, loss, lr=self.inner_lr, create_graph=create_graph)

    def _adapt_to_domains(self, split: str) -> None:
        fitting = self.trainer.state.fn == TrainerFn.FITTING  # another trainer counts no steps
        if self.pretrain == 1.0 or (fitting and self.phase == "pretrain"):
            return
        data = cast(DataModule, self.datamodule)
        first: dict[int, list[Tensor]] = {}
        with torch.inference_mode(False):
            for batch in data.all_batches(split):
                require_keys(batch, "domain", user="MetaDMoE")
                batch = self.trainer.precision_plugin.convert_input(batch)
                for x, domain in zip(batch["input"], batch["domain"].tolist(), strict=True):
                    if len(rows := first.setdefault(domain, [])) < self.support:
                        rows.append(x)
            self._adapted = {domain: self.adapt(torch.stack(rows)) for domain, rows in sorted(first.items())}

    def _evaluated(self, batch: Batch) -> Outputs:
        require_keys(batch, "domain", user="MetaDMoE")
        order = batch["domain"].argsort(stable=True)
        domains, counts = batch["domain"].unique(return_counts=True)
        parts = zip(domains.tolist(), batch["input"][order].split(counts.tolist()), strict=True)
        features = torch.cat([self._adapted[domain].features(x) for domain, x in parts])[order.argsort()]
        return Outputs(logits=self.network.head(features), features=features)


class _Features(nn.Module):
    """A network up to its features, for `functional_call`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)
