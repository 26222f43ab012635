"""Which parameters the next trial has: drawn beforehand, or learned from the scores of earlier ones."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from raysrec.sweep.config import Parameters, SweepConfig, SweepError
from raysrec.sweep.record import TrialRecord
from raysrec.sweep.sampler import Sampler, rounded

ASK_AGAIN = 30
"""Proposals of parameters that another trial has, after which new ones are drawn at random."""


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
    """Optuna's tree-structured Parzen estimator; what it proposes follows from seed, number and the scores so far.

    What is known is told to it anew for each proposal, so that nothing hangs on how often a sweep was started.
    """

    def __init__(self, settings: SweepConfig, known: Sequence[TrialRecord]) -> None:
        refuse_missing_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._settings = settings
        self._distributions = {key: _distribution(sampler) for key, sampler in settings.space.items()}
        # One that is to go on counts as one that runs.
        self._trials = {trial.number: trial if trial.is_done else _running(trial) for trial in known}

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial, which no other has."""
        parameters = self._asked(number)
        self._trials[number] = TrialRecord(number=number, name="", parameters=parameters, state="running")
        return parameters

    def told(self, trial: TrialRecord) -> None:
        """Learn from a trial that has ended; one that was stopped early counts as far as it came."""
        self._trials[trial.number] = trial

    def _asked(self, number: int) -> Parameters:
        known = [self._trials[other] for other in sorted(self._trials)]
        study = self._optuna.create_study(direction="maximize")
        study.add_trials([found for trial in known if (found := self._as_optuna_has_it(trial)) is not None])
        for again in range(ASK_AGAIN):
            seed = int(np.random.SeedSequence([self._settings.seed, number, again]).generate_state(1)[0])
            # With a sampler of its own each draw is the same after a restart.
            study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            asked = study.ask(self._distributions)
            parameters = {key: self._external(key, value) for key, value in asked.params.items()}
            same = next((trial for trial in known if trial.parameters == parameters), None)
            if same is None:
                return parameters
            # Its score is known, and is no reason to come here again.
            self._tell(study, asked, same)
        return self._settings.other_than([trial.parameters for trial in known])

    def _tell(self, study: Any, asked: Any, trial: TrialRecord) -> None:
        if (found := self._as_optuna_has_it(trial)) is None:
            study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        elif found.state.is_finished():
            for epoch, score in found.intermediate_values.items():
                asked.report(score, epoch)
            study.tell(asked, found.value if found.state.name == "COMPLETE" else None, state=found.state)

    def _as_optuna_has_it(self, trial: TrialRecord) -> Any:
        """The trial as one of Optuna's; None if nothing can be learned from it."""
        states = self._optuna.trial.TrialState
        finished = trial.state == "finished" and trial.score is not None
        if not finished and trial.state != "running" and not (trial.state == "stopped" and trial.curve):
            return None
        return self._optuna.trial.create_trial(
            state=states.COMPLETE if finished else states.RUNNING if trial.state == "running" else states.PRUNED,
            params={key: self._internal(key, value) for key, value in trial.parameters.items()},
            distributions=self._distributions,
            value=trial.score if finished else None,
            intermediate_values={} if finished else {validation.epoch: validation.score for validation in trial.curve},
        )

    def _internal(self, key: str, value: Any) -> Any:
        sampler = self._settings.space[key]
        return sampler.values.index(value) if sampler.kind == "choice" else value

    def _external(self, key: str, value: Any) -> Any:
        sampler = self._settings.space[key]
        if sampler.kind == "choice":
            return sampler.values[value]
        low, high = sampler.values
        return rounded(value, float(low), float(high)) if isinstance(value, float) else value


def _running(trial: TrialRecord) -> TrialRecord:
    return trial.model_copy(update={"state": "running"})


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
