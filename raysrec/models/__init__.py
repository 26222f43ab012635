"""The models: one file each, and the dictionary that gives them their names."""

from typing import Any

from raysrec.models.base import ModelConfig, SequenceModel, State
from raysrec.models.gru4rec import GRU4Rec
from raysrec.models.lrurec import LRURec
from raysrec.models.mamba4rec import Mamba4Rec
from raysrec.models.narm import NARM
from raysrec.models.recblr import RecBLR
from raysrec.models.recgrela import RecGRELA

MODELS: dict[str, type[SequenceModel]] = {
    "gru4rec": GRU4Rec,
    "lrurec": LRURec,
    "mamba4rec": Mamba4Rec,
    "narm": NARM,
    "recblr": RecBLR,
    "recgrela": RecGRELA,
}


def build_model(config: ModelConfig, num_items: int, num_users: int = 0) -> SequenceModel:
    """A freshly initialised model.

    Args:
        config: Which model and its settings.
        num_items: Items of the catalogue, ids 1..num_items.
        num_users: Users 1..num_users; needed by models with user vectors only.
    """
    model: Any = MODELS[config.name]
    sizes = {"num_users": num_users} if model.has_user_vectors else {}
    return model(config, num_items, **sizes)  # type: ignore[no-any-return]


__all__ = ["MODELS", "ModelConfig", "SequenceModel", "State", "build_model"]
