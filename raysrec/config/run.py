"""All sections together, and what must hold between them."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, model_validator

from raysrec.config.checkpoint import CheckpointConfig
from raysrec.config.data import DataConfig
from raysrec.config.engine import EngineConfig
from raysrec.config.evaluate import EvaluateConfig
from raysrec.config.loss import LossConfig
from raysrec.config.scale import ScaleConfig
from raysrec.config.storage import StorageConfig
from raysrec.config.train import ClozeConfig, TrainConfig
from raysrec.models import MODELS, ModelConfig, build_model
from raysrec.place import Place
from raysrec.schema import Section

if TYPE_CHECKING:
    AnyModelConfig = ModelConfig
else:
    AnyModelConfig = Annotated[reduce(or_, (model.Config for model in MODELS.values())), Field(discriminator="name")]


OURS = {
    "train_batch_size": "train.batch_targets",
    "train_micro_batch_size_per_gpu": "train.micro_batch_tokens",
    "gradient_accumulation_steps": "train.micro_batch_tokens",
    "gradient_clipping": "train.clip_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
}
"""Settings of DeepSpeed that follow from ours: another value would be ignored, or learn something else than is said."""


class RunConfig(Section):
    """Everything that decides what a run computes."""

    data: DataConfig = DataConfig()
    """Interactions and the layout of an epoch."""
    model: AnyModelConfig
    """The model; `model.name` decides which further keys there are."""
    loss: LossConfig = LossConfig()
    """The loss."""
    train: TrainConfig = TrainConfig()
    """Learning."""
    engine: EngineConfig = EngineConfig()
    """Updates."""
    scale: ScaleConfig = ScaleConfig()
    """Workers."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Ranking."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    storage: StorageConfig = StorageConfig()
    """The run directory."""

    @property
    def run_directory(self) -> Place:
        """Where the run is kept."""
        return Place.of(self.storage.root) / (self.storage.name or f"{self.data.name}-{self.model.name}")

    @model_validator(mode="after")
    def _possible(self) -> "RunConfig":
        if self.engine.extra and self.engine.name != "deepspeed":
            raise ValueError(
                f"engine.extra is DeepSpeed's, and engine.name={self.engine.name} would ignore it; "
                "set engine.name=deepspeed or drop engine.extra"
            )
        self.engine.refuse_unused(
            "engine", {"zero_stage": self.engine.name != "deepspeed"}, f"engine.name={self.engine.name}"
        )
        self._extra_leaves_what_is_ours()
        self._extra_can_be_saved()
        if self.train.optimizer == "muon" and self.engine.name != "torch":
            raise ValueError(
                f"train.optimizer=muon needs whole matrices, which engine.name={self.engine.name} cuts up; "
                "set engine.name=torch or train.optimizer=adam"
            )
        self._supervision_fits()
        return self

    def _extra_leaves_what_is_ours(self) -> None:
        zero = self.engine.extra.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError(f"engine.extra.zero_optimization={zero!r}: is a section; set keys in it")
        for key, setting in OURS.items():
            if key in self.engine.extra:
                raise ValueError(f"engine.extra.{key}: that is decided by {setting}; set it there")
        if "stage" in zero:
            raise ValueError(
                "engine.extra.zero_optimization.stage: the stage is set by engine.zero_stage; set it there"
            )

    def _extra_can_be_saved(self) -> None:
        lower = [name for name in ("fp16", "amp", "bf16") if _is_on(self.engine.extra.get(name))]
        if lower and (lower != ["bf16"] or self.engine.zero_stage == 0):
            raise ValueError(
                f"engine.extra.{lower[0]} keeps, with engine.zero_stage={self.engine.zero_stage}, a state that no "
                "checkpoint holds; set engine.precision=bfloat16 (or engine.extra.bf16 with engine.zero_stage 1 to 3)"
            )

    def _supervision_fits(self) -> None:
        supervision, windows = self.train.supervision, self.train.windows
        # It is asked only what it promises, which no size changes.
        small = self.model.model_copy(update={"max_length": min(self.model.max_length, 4)})
        with torch.random.fork_rng(devices=[]):  # nobody's random numbers change because a config was looked at
            model = build_model(small, num_items=1, num_users=1)
        if supervision == "every_position" and not model.causal:
            raise ValueError(
                f"train.supervision=every_position needs a causal model, but model.name={self.model.name} as "
                "configured sees the items it would have to predict; set train.supervision="
                f"{'cloze' if model.fills_gaps else 'last_position'}"
            )
        if supervision == "cloze" and not model.fills_gaps:
            raise ValueError(
                f"train.supervision=cloze needs a model that fills gaps, and model.name={self.model.name} does not; "
                f"set train.supervision={'every' if model.causal else 'last'}_position"
            )
        if supervision == "every_position" and windows == "prefixes":
            raise ValueError(
                "train.windows=prefixes would learn a target once for each prefix that holds it, and "
                "train.supervision=every_position learns it as well from one row; set train.windows=tile"
            )
        if supervision == "last_position" and windows != "tile":
            raise ValueError(
                f"train.windows={windows} is how rows are cut for train.supervision=every_position; "
                "last_position has one row per target, drop train.windows"
            )
        if supervision == "cloze" and windows == "overlap":
            raise ValueError(
                "train.windows=overlap gives context to positions that are not learned from, and "
                "train.supervision=cloze has none; set train.windows=tile"
            )
        if supervision != "cloze" and self.train.cloze != ClozeConfig():
            raise ValueError(f"train.cloze is for train.supervision=cloze, and {supervision} hides nothing; drop it")
        if supervision != "last_position" and windows != "prefixes" and self.train.prefixes_per_user != "all":
            raise ValueError(
                f"train.prefixes_per_user={self.train.prefixes_per_user} is for train.supervision=last_position or "
                f"train.windows=prefixes, and {supervision} with windows={windows} has no prefixes; drop it"
            )


def _is_on(section: Any) -> bool:
    return isinstance(section, dict) and bool(section.get("enabled"))
