"""The section `evaluate`: how held-out items are ranked."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysrec.schema import Count, Section


class EvaluateConfig(Section):
    """How held-out items are ranked."""

    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 10, 20)
    """Cut-offs of the metrics."""
    metric: str = "ndcg@10"
    """The validation score that chooses the best weights and stops training."""
    exclude_seen: bool = False
    """Leave out items that the user already had; false is the protocol of the papers."""
    concurrent: bool = False
    """Validate while the next epoch is learned, in processes that ask for a CPU each where data is read (no GPU), and
    not in the training workers, which would wait. The same weights are chosen; patience runs out an epoch later."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """On what a finished run is ranked, and recommends. `auto` takes the CPUs of machines that have
    `scale.data_resources`, so that GPUs are free when training ends; where none are named, it is `scale.device`."""
    batch_tokens: Count = 8_192
    """Positions (padding included) encoded at once; a few thousand stay in a CPU's cache, a GPU wants more."""
    items_per_chunk: Count = 65_536
    """Catalogue rows scored at once."""

    @property
    def scores(self) -> list[str]:
        """Names of the scores of a split, such as `ndcg@10`."""
        return [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in self.ks]

    @model_validator(mode="after")
    def _metric_is_computed(self) -> "EvaluateConfig":
        if self.metric not in self.scores:
            raise ValueError(
                f"evaluate.metric={self.metric} is not computed with evaluate.ks={list(self.ks)}; "
                f"one of {', '.join(self.scores)}"
            )
        return self
