"""From a sweep's file, configurations and `key=value` to one Sweep whose every trial can be trained."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raysrec.config.files import ConfigError, FileKind, read
from raysrec.config.loading import validate
from raysrec.config.mistakes import wrong_value
from raysrec.config.run import RunConfig
from raysrec.config.settings import nest, overlay
from raysrec.errors import did_you_mean
from raysrec.place import AnyPath, Place
from raysrec.sweep.config import Parameters, SchedulerConfig, SweepConfig, SweepError
from raysrec.sweep.proposals import refuse_missing_optuna
from raysrec.sweep.record import SweepDirectory

OWN = FileKind(
    "--sweep", "keys such as space: and num_samples:", "sweep.key=value", "sweep.num_samples=20", prefix="sweep."
)
"""A sweep's file; what a setting of the sweep itself begins with on the command line."""

LEARNED_DRAWS = 20
"""Random draws that are checked where the real ones follow from scores that are not there yet."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that was checked."""

    file: Place
    """Where it is written."""
    settings: SweepConfig
    """What it says; its name and metric are filled in."""
    config: RunConfig
    """What all trials start from."""
    base: Mapping[str, Any]
    """The same as it was given, without defaults: those depend on the parameters."""

    @property
    def directory(self) -> SweepDirectory:
        """Where it is kept."""
        config = self.config
        name = config.storage.name or f"{config.data.name}-{config.model.name}-{self.settings.name}"
        return SweepDirectory(Place.of(config.storage.root) / name)

    @property
    def max_epochs(self) -> int:
        """The most epochs that any trial is trained."""
        swept = self.settings.space.get("train.epochs")
        return int(max(swept.values)) if swept else self.config.train.epochs

    def config_of(self, name: str, parameters: Parameters) -> RunConfig:
        """A trial's whole configuration.

        Raises:
            ConfigError: Its parameters do not go together.
        """
        settings = self.base
        for key, value in parameters.items():
            settings = overlay(settings, nest(key, value))
        storage = {"storage": {"root": str(self.directory.runs.absolute()), "name": name}}
        return validate(overlay(settings, storage))

    def best_config(self, parameters: Parameters) -> RunConfig:
        """The configuration of these parameters as a run of its own, beside the sweep."""
        config = self.config_of("", parameters)
        storage = self.config.storage.model_copy(update={"name": f"{self.directory.path.name}-best"})
        return config.model_copy(update={"storage": storage})


def load_sweep(file: AnyPath, configs: Sequence[AnyPath], overrides: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep: every trial, and both ends of every range.

    Args:
        file: The sweep's YAML file.
        configs: YAML files of the configuration; the sweep's own `config` lies over them.
        overrides: `key=value` over all of these, and `sweep.key=value` over the sweep's file.

    Raises:
        ConfigError: The configuration cannot be run as it is.
        SweepError: The sweep cannot be made; the text names its file, the parameter and the value.
    """
    file = Place.of(file)
    own = [override for override in overrides if override.startswith(OWN.prefix)]
    others = [override for override in overrides if not override.startswith(OWN.prefix)]
    settings = _settings(file, own)
    if settings.search == "optuna":
        refuse_missing_optuna()
    _refuse_set_and_swept(file, settings, others)
    base = read(configs, others, between=settings.config)
    metric = _metric(file, settings, validate(base))
    base = overlay(base, nest("evaluate.metric", metric))
    settings = settings.model_copy(update={"name": settings.name or PurePath(file.name).stem, "metric": metric})
    sweep = Sweep(file, settings, validate(base), base)
    _refuse_impossible(sweep)
    rule = settings.scheduler
    if rule.name != "none" and rule.grace_epochs >= sweep.max_epochs:
        raise SweepError(
            f"{file}: scheduler.grace_epochs={rule.grace_epochs} leaves nothing to end early in "
            f"train.epochs={sweep.max_epochs}; lower it, or set scheduler.name=none"
        )
    return sweep


def _settings(file: Place, overrides: Sequence[str]) -> SweepConfig:
    try:
        return SweepConfig.model_validate(read([file], overrides, kind=OWN))
    except ValidationError as error:
        raise SweepError("\n".join(f"{file}: {_in_words(detail)}" for detail in error.errors())) from None


def _refuse_set_and_swept(file: Place, settings: SweepConfig, overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        for swept in settings.space:
            if swept == key or swept.startswith(f"{key}."):
                raise SweepError(f"{override}: {swept} is swept by {file}; drop one of them")


def _metric(file: Place, settings: SweepConfig, config: RunConfig) -> str:
    """The name of the validation score, as it is reported."""
    metric = settings.metric.removeprefix("validation/") or config.evaluate.metric
    known = config.evaluate.scores
    if metric.startswith("test/"):
        raise SweepError(f"{file}: metric={metric}: a test score never steers a search; write {metric[5:]}")
    if metric not in known:
        raise SweepError(
            f"{file}: metric={metric} is not reported with evaluate.ks={list(config.evaluate.ks)}"
            f"{did_you_mean(metric, known)}; known: {', '.join(known)}"
        )
    return metric


def _refuse_impossible(sweep: Sweep) -> None:
    """See that each trial, and each end of each range, is a configuration that can be run."""
    settings = sweep.settings
    learned = settings.search == "optuna"
    trials = list(itertools.islice(settings.trials(), LEARNED_DRAWS if learned else None))
    for key, sampler in settings.space.items():
        for value in sampler.extremes if sampler.kind != "grid" else ():
            trials.append({**trials[0], key: value})
    for parameters in trials:
        try:
            sweep.config_of("trial", parameters)
        except ConfigError as error:
            raise SweepError(f"{sweep.file}: {_culprit(sweep, parameters)}: {error}") from None


def _culprit(sweep: Sweep, parameters: Parameters) -> str:
    """The one parameter that cannot be what it is, or all of them where it is no single one."""
    for key, value in parameters.items():
        try:
            sweep.config_of("trial", {key: value})
        except ConfigError:
            return f"space.{key} at {value!r}"
    return "space at " + ", ".join(f"{key}={value!r}" for key, value in parameters.items())


_KEYS = [*SweepConfig.model_fields, *(f"scheduler.{name}" for name in SchedulerConfig.model_fields)]


def _in_words(detail: ErrorDetails) -> str:
    """One mistake of a sweep's file."""
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a known key{did_you_mean(key, _KEYS)}; known: {', '.join(_KEYS)}"
    return wrong_value(key, detail)
