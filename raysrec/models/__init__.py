"""The models: one file each, and the dictionary that gives them their names."""

from typing import Any

from raysrec.models.base import ModelConfig, SequenceModel, State
from raysrec.models.bert4rec import BERT4Rec
from raysrec.models.bprmf import BPRMF
from raysrec.models.caser import Caser
from raysrec.models.echomamba4rec import EchoMamba4Rec
from raysrec.models.eulerformer import EulerFormer
from raysrec.models.gru4rec import GRU4Rec
from raysrec.models.linrec import LinRec
from raysrec.models.lrurec import LRURec
from raysrec.models.mamba4rec import Mamba4Rec
from raysrec.models.narm import NARM
from raysrec.models.popularity import Popularity
from raysrec.models.recblr import RecBLR
from raysrec.models.recgrela import RecGRELA
from raysrec.models.recmamba import RecMamba
from raysrec.models.sasrec import SASRec
from raysrec.models.sigma import SIGMA

MODELS: dict[str, type[SequenceModel]] = {
    "bprmf": BPRMF,
    "caser": Caser,
    "narm": NARM,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "lrurec": LRURec,
    "mamba4rec": Mamba4Rec,
    "recmamba": RecMamba,
    "linrec": LinRec,
    "echomamba4rec": EchoMamba4Rec,
    "eulerformer": EulerFormer,
    "recblr": RecBLR,
    "sigma": SIGMA,
    "recgrela": RecGRELA,
    "popularity": Popularity,
}
"""In the order of the papers: what they compare with, then what they propose, then the floor."""


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
