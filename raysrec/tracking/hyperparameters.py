"""A run's settings as flat names and values, for TensorBoard's and MLflow's tables of runs."""

from typing import Any

from raysrec.config.run import RunConfig

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
    found: dict[str, bool | int | float | str] = {}
    for section in SECTIONS:
        found |= _flat(getattr(config, section).model_dump(mode="json"), f"{section}.")
    return found


def _flat(settings: dict[str, Any], prefix: str) -> dict[str, bool | int | float | str]:
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key in LEFT_OUT or value is None or value == "":
            continue
        if isinstance(value, dict):
            found |= _flat(value, f"{key}.")
        else:
            found[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
