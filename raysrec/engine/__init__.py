"""Engines: what turns micro-batches into one update of the weights, on all workers at once.

`TorchEngine` (DDP) is the reference; `DeepSpeedEngine` (ZeRO 0-3) is tested against it. Both divide the summed
loss by the number of targets over all workers and micro-batches, so that a target weighs the same wherever it is
learned from; and each goes on from what the other saved.
"""

import torch

from raysrec.config.run import RunConfig
from raysrec.engine.deepspeed_engine import DeepSpeedEngine, deepspeed_config
from raysrec.engine.exchange import everyones
from raysrec.engine.fixed_engine import FixedEngine
from raysrec.engine.interface import Engine, StepResult, Weights
from raysrec.engine.nonfinite import Fault, NonFiniteLoss
from raysrec.engine.restoring import StateMismatch
from raysrec.engine.saved import BrokenState, saved_state
from raysrec.engine.schedule import learning_rate, share_done
from raysrec.engine.snapshot import Snapshot
from raysrec.engine.torch_engine import TorchEngine
from raysrec.objective import Objective

__all__ = [
    "BrokenState",
    "DeepSpeedEngine",
    "Engine",
    "Fault",
    "FixedEngine",
    "NonFiniteLoss",
    "Snapshot",
    "StateMismatch",
    "StepResult",
    "TorchEngine",
    "Weights",
    "build_engine",
    "deepspeed_config",
    "everyones",
    "learning_rate",
    "saved_state",
    "share_done",
]


def build_engine(objective: Objective, config: RunConfig, device: torch.device) -> Engine:
    """The engine that the configuration names, around an objective that is already on the device.

    Raises:
        ValueError: DeepSpeed is asked for and not installed.
    """
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        return FixedEngine(objective, device)
    if config.engine.name == "deepspeed":
        return DeepSpeedEngine(objective, config, device)
    return TorchEngine(objective, config, device)
