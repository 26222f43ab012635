"""The models: one file each, and the dictionary that gives them their names."""

from typing import Any

from raysrec.models.base import ModelConfig, SequenceModel, State
from raysrec.models.mamba4rec import Mamba4Rec
from raysrec.models.recgrela import RecGRELA

MODELS: dict[str, type[SequenceModel]] = {
    "mamba4rec": Mamba4Rec,
    "recgrela": RecGRELA,
}


def build_model(config: ModelConfig, num_items: int) -> SequenceModel:
    """A freshly initialised model for a catalogue of `num_items` items (ids 1..num_items)."""
    model: Any = MODELS[config.name]
    return model(config, num_items)  # type: ignore[no-any-return]


__all__ = ["MODELS", "ModelConfig", "SequenceModel", "State", "build_model"]
