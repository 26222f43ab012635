"""What a run is: one frozen RunConfig (`run.py`), made from YAML files and `key=value` at the edge, sent as JSON.

Its sections are here, and torch is not: what only reads and prepares data does without the models that `run.py` knows.

Every default lives here (or in a model's `Config`), once, with its help text under it. Nothing below this folder
reads a dictionary of settings, an environment variable or the command line.
"""

from raysrec.config.data import Columns, DataConfig
from raysrec.config.learning import ClozeConfig, EngineConfig, LossConfig, TrainConfig
from raysrec.config.running import CheckpointConfig, EvaluateConfig, ScaleConfig, StorageConfig
from raysrec.config.split import SplitConfig
from raysrec.config.synthetic import FIRST_SESSION, GROUP, RETURN, SyntheticConfig

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
