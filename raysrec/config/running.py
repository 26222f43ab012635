"""The sections `scale`, `evaluate` and `storage`: on what, how judged, and where kept."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysrec.config.data import AnyPlace
from raysrec.schema import Count, CountOrZero, NonNegative, Section


class ScaleConfig(Section):
    """How many workers, and what each is given."""

    workers: Count = 1
    """Training processes, at most `data.num_streams` (or processes that rank, where a run is evaluated)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs if the cluster has one for each worker."""
    threads_per_worker: CountOrZero = 0
    """CPU threads of a worker's arithmetic; 0 divides this machine's cores among the workers."""
    wait_s: NonNegative = 600.0
    """Seconds in which a cluster must come to have room for the workers, by nodes that start or jobs that end; a Ray
    that starts here is never waited for."""


class EvaluateConfig(Section):
    """How held-out items are ranked."""

    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 10, 20)
    """Cut-offs of the metrics."""
    metric: str = "ndcg@10"
    """The validation score that chooses the best weights and stops training."""
    exclude_seen: bool = False
    """Leave out items that the user already had; false is the protocol of the papers."""
    batch_tokens: Count = 8_192
    """Positions (padding included) encoded at once; a few thousand stay in a CPU's cache, a GPU wants more."""
    items_per_chunk: Count = 65_536
    """Catalogue rows scored at once."""

    @model_validator(mode="after")
    def _metric_is_computed(self) -> "EvaluateConfig":
        known = [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in self.ks]
        if self.metric not in known:
            raise ValueError(
                f"evaluate.metric={self.metric} is not computed with evaluate.ks={list(self.ks)}; "
                f"one of {', '.join(known)}"
            )
        return self


class StorageConfig(Section):
    """Where a run is kept."""

    root: AnyPlace = "runs"
    """Folder of all runs, here or in a store."""
    name: str = ""
    """Folder of this run under `root`; empty for `<data.name>-<model.name>`."""
