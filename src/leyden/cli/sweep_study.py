"""What Optuna does in a sweep: it chooses the values of the next run, judges a run in its middle, and stores all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from leyden.cli.config import ConfigError
from leyden.cli.sweep_file import Sweep
from leyden.cli.sweep_parameters import Parameter

__all__ = ["SweepStudy"]

STORE = "study.db"


class SweepStudy:
    """The runs of a sweep.

    Which values a run gets is a function of the seed, its number and the runs before it: a sweep that was interrupted
    goes on as if it had not been. (With several runs at a time it also depends on which of them ends first.)

    Args:
        folder: of the sweep.
        sweep: what is tried.
        seed: of the choices.
        settings: further options of all runs.

    Raises:
        ConfigError: the folder has another sweep.
    """

    def __init__(self, folder: Path, sweep: Sweep, seed: int, settings: list[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        self.seed = seed
        self.distributions = {parameter.key: _distribution(parameter) for parameter in sweep.parameters}
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if sweep.early is not None:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=sweep.early[0], reduction_factor=sweep.early[1]
            )
        self.study = optuna.create_study(
            storage=_storage(folder),
            study_name="sweep",
            direction="minimize" if sweep.mode == "min" else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        content = json.loads(json.dumps(sweep.content)) | {"--seed": seed, "--set": settings}
        before = self.study.user_attrs.get("content", content)
        changed = [key for key in before | content if before.get(key) != content.get(key)]
        if changed:
            raise ConfigError(
                f"{folder} has a sweep with another {' and '.join(changed)}: choose another --name or remove the folder"
            )
        self.study.set_user_attr("content", content)
        self._begun_before = len(self.trials)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All runs that have begun."""
        return self.study.get_trials(deepcopy=False)

    def typed(self, trial: Trial | FrozenTrial) -> dict[str, str]:
        """The values of a run, as they are typed."""
        return {parameter.key: parameter.text(trial.params[parameter.key]) for parameter in self.sweep.parameters}

    def interrupted(self) -> list[Trial]:
        """Runs that have begun and not ended; one whose values were not chosen yet is given up."""
        found = []
        for trial in self.trials:
            if trial.state != TrialState.RUNNING:
                continue
            if trial.params.keys() == self.distributions.keys():
                found.append(Trial(self.study, trial._trial_id))
            else:
                self.study.tell(trial.number, state=TrialState.FAIL)
        return found

    def ask(self) -> Trial | None:
        """Chooses the values of the next run; None if a grid has no more."""
        if self.sweep.method == "grid":
            # a point that failed is tried again when the sweep goes on, but not at once
            tried = [
                trial.params
                for trial in self.trials
                if trial.state != TrialState.FAIL or trial.number >= self._begun_before
            ]
            point = next((point for point in self.sweep.grid() if point not in tried), None)
            if point is None:
                return None
            self.study.sampler = _Fixed(point)
        else:
            text = f"{self.seed} {len(self.trials)}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
            random = self.sweep.method == "random"
            self.study.sampler = (optuna.samplers.RandomSampler if random else optuna.samplers.TPESampler)(seed=seed)
        return self.study.ask(self.distributions)

    def should_stop(self, trial: Trial, iteration: int, value: float) -> bool:
        """Notes a value of the metric; says whether the run is to be stopped early."""
        if iteration not in self.study.trials[trial.number].intermediate_values:  # else it goes on from before that
            trial.report(value, iteration)
        return trial.should_prune()

    def tell(self, trial: Trial, outcome: str, value: float | None, **facts: Any) -> None:
        """Notes how a run has ended.

        Args:
            trial: the run.
            outcome: ``complete``, ``stopped early`` or ``diverged``; any other is a failure.
            value: of the metric, of a complete one.
            facts: to be shown in the table.
        """
        for name, fact in {"outcome": outcome, **facts}.items():
            trial.set_user_attr(name, fact)
        # one that diverged must count as bad, or its neighbours are tried too
        ends = {"complete": TrialState.COMPLETE, "stopped early": TrialState.PRUNED, "diverged": TrialState.PRUNED}
        self.study.tell(trial.number, value, state=ends.get(outcome, TrialState.FAIL))

    def has_reached_target(self) -> bool:
        """Whether a run was as good as the sweep's ``target``."""
        best, target = self.best(), self.sweep.target
        if best is None or best.value is None or target is None:
            return False
        return best.value <= target if self.sweep.mode == "min" else best.value >= target

    def best(self) -> FrozenTrial | None:
        """The run with the best value; None before one is complete."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = 1 if self.sweep.mode == "min" else -1
        return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


class _Fixed(optuna.samplers.BaseSampler):
    """Gives the values that it was given."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.params[param_name]


def _storage(folder: Path) -> Any:
    return f"sqlite:///{folder / STORE}"  # whole after a kill at any moment, which Optuna's journal is not


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
