"""What a run is: one frozen RunConfig (`run.py`), made from YAML files and `key=value` at the edge, sent as JSON.

Its sections are here, and torch is not: what only reads and prepares data does without the models that `run.py` and
who builds on it know.

Every default lives here (or in a model's `Config`), once, with its help text under it. No model, loss or metric reads a
dictionary of settings, an environment variable or the command line.
"""

from raysrec.config.checkpoint import CheckpointConfig
from raysrec.config.data import Columns, DataConfig
from raysrec.config.engine import EngineConfig
from raysrec.config.evaluate import EvaluateConfig
from raysrec.config.loss import LossConfig
from raysrec.config.scale import ScaleConfig
from raysrec.config.split import SplitConfig
from raysrec.config.storage import StorageConfig
from raysrec.config.synthetic import FIRST_SESSION, GROUP, RETURN, SyntheticConfig
from raysrec.config.train import ClozeConfig, TrainConfig

__all__ = [
    "FIRST_SESSION",
    "GROUP",
    "RETURN",
    "CheckpointConfig",
    "ClozeConfig",
    "Columns",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "LossConfig",
    "ScaleConfig",
    "SplitConfig",
    "StorageConfig",
    "SyntheticConfig",
    "TrainConfig",
]
