"""A run's settings as flat names and values, for TensorBoard's and MLflow's tables of runs."""

from raysrec.config.run import RunConfig
from raysrec.config.settings import flat

SECTIONS = ("data", "model", "loss", "train", "engine", "scale", "evaluate")
"""Sections that decide what a run computes, and how fast."""

LEFT_OUT = (
    "data.source",
    "data.url",
    "data.checksum",
    "data.prepared",
    "data.columns",
    "data.synthetic",
    "engine.extra",
)
"""Settings that say where data lie and how they are read; the run's config.yaml has them."""


def hyperparameters(config: RunConfig) -> dict[str, bool | int | float | str]:
    """Every setting by its dotted key; a list is text, and what is not set is left out."""
    settings = flat(config.model_dump(mode="json", include=set(SECTIONS)))
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in settings.items()
        if value not in (None, "") and not key.startswith(LEFT_OUT)
    }
