"""The section `checkpoint`: how often a training is saved."""

from typing import Annotated

from pydantic import Field

from raysrec.schema import Count, CountOrZero, Section


class CheckpointConfig(Section):
    """When a training is saved, besides after each epoch and when it is asked to end; it goes on meanwhile."""

    every_steps: CountOrZero = 0
    """Updates between two checkpoints; 0 to go by time alone."""
    every_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds between two checkpoints."""
    keep: Count = 2
    """How many checkpoints are kept; the best weights are kept besides."""
    stop_within_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that saving may take when the run is asked to end, by SIGTERM or Ctrl-C."""
