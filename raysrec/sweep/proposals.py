"""Which parameters the next trial has: drawn beforehand, or learned from the scores of earlier ones."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from raysrec.sweep.config import Parameters, SweepConfig, SweepError
from raysrec.sweep.record import TrialRecord
from raysrec.sweep.sampler import Sampler, rounded


@runtime_checkable
class Proposals(Protocol):
    """Where parameters come from."""

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""

    def told(self, trial: TrialRecord) -> None:
        """A trial has ended."""


def proposals(settings: SweepConfig, known: Sequence[TrialRecord]) -> Proposals:
    """What the sweep asks for.

    Args:
        settings: The sweep.
        known: Trials of earlier starts, done or not.

    Raises:
        SweepError: It asks for Optuna, which is not installed.
    """
    return LearnedProposals(settings, known) if settings.search == "optuna" else DrawnProposals(settings)


class DrawnProposals:
    """A grid or random draws, the same at every start."""

    def __init__(self, settings: SweepConfig) -> None:
        self._trials = list(settings.trials())

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""
        return self._trials[number]

    def told(self, trial: TrialRecord) -> None:
        """Nothing follows from scores."""


class LearnedProposals:
    """Optuna's tree-structured Parzen estimator; what it proposes follows from seed, number and the scores so far."""

    def __init__(self, settings: SweepConfig, known: Sequence[TrialRecord]) -> None:
        refuse_missing_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._settings = settings
        self._distributions = {key: _distribution(sampler) for key, sampler in settings.space.items()}
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, Any] = {}
        for trial in known:
            self._study.enqueue_trial({key: self._internal(key, value) for key, value in trial.parameters.items()})
            self._asked[trial.number] = self._study.ask(self._distributions)
            if trial.is_done:
                self.told(trial)

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""
        seed = int(np.random.SeedSequence([self._settings.seed, number]).generate_state(1)[0])
        # With a sampler of its own each trial's draw is the same after a restart.
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._asked[number] = self._study.ask(self._distributions)
        return {key: self._external(key, value) for key, value in self._asked[number].params.items()}

    def told(self, trial: TrialRecord) -> None:
        """Learn from a trial that has ended; one that was stopped early counts as far as it came."""
        asked = self._asked.pop(trial.number, None)
        if asked is None:
            return
        state = self._optuna.trial.TrialState
        if trial.state == "finished" and trial.score is not None:
            self._study.tell(asked, trial.score)
            return
        for epoch, score, _ in trial.curve:
            asked.report(score, epoch)
        self._study.tell(asked, state=state.PRUNED if trial.curve and trial.state == "stopped" else state.FAIL)

    def _internal(self, key: str, value: Any) -> Any:
        sampler = self._settings.space[key]
        return sampler.values.index(value) if sampler.kind == "choice" else value

    def _external(self, key: str, value: Any) -> Any:
        sampler = self._settings.space[key]
        if sampler.kind == "choice":
            return sampler.values[value]
        low, high = sampler.values
        return rounded(value, float(low), float(high)) if isinstance(value, float) else value


def refuse_missing_optuna() -> None:
    """Raise a SweepError that says how Optuna is installed, if it is not."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise SweepError(
            "search=optuna needs Optuna, which is not installed; pip install 'raysrec[optuna]', or set search=random"
        ) from None


def _distribution(sampler: Sampler) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if sampler.kind == "choice":
        # By their places in the list: Optuna knows no lists among its values.
        return CategoricalDistribution(range(len(sampler.values)))
    low, high = sampler.values
    kind: Any = IntDistribution if sampler.kind.endswith("integer") else FloatDistribution
    return kind(low, high, log=sampler.is_logarithmic)
