"""The section `engine`: what applies an update, on all workers at once."""

from typing import Annotated, Any, Literal

from pydantic import Field

from raysrec.schema import Section


class EngineConfig(Section):
    """What turns a loss into an update."""

    name: Literal["torch", "deepspeed"] = "torch"
    """`torch`: plain PyTorch with DDP; `deepspeed`: ZeRO."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What DeepSpeed shards over workers: 1 optimizer state, 2 also gradients, 3 also weights; 0 nothing."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; `auto` takes bfloat16 on GPUs that have it and float32 elsewhere."""
    extra: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Laid over the DeepSpeed configuration that is derived from this file; logged."""
