"""What a run is: one frozen RunConfig, made from YAML files and `key=value` at the edge, sent to workers as JSON.

Every default lives here (or in a model's `Config`), once, with its help text under it. Nothing below this file
reads a dictionary of settings, an environment variable or the command line.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raysrec.models import MODELS, ModelConfig, build_model
from raysrec.place import Place
from raysrec.schema import (
    Count,
    CountOrZero,
    Decay,
    Interval,
    Moment,
    NonNegative,
    Positive,
    Probability,
    Section,
    Share,
)


class Columns(Section):
    """The names of the three columns of a source."""

    user: str = "user"
    """Column of user ids; any text or number."""
    item: str = "item"
    """Column of item ids; any text or number."""
    time: str = "time"
    """Column of times; numbers, larger is later."""


FIRST_SESSION = 20
"""Interactions with which a user of the embedded source begins, if they return later."""


class SyntheticConfig(Section):
    """The embedded source: users who walk through a seeded Markov chain over items of skewed popularity."""

    shape: Literal["custom", "ml-20m", "netflix", "lfm-1b"] = "custom"
    """How many users, items and interactions, and how they are spread: as in a published data set after its filter, or
    as the next three say."""
    num_users: Count | None = None
    """Users to make; by default as many as the shape has, 2,000 for `custom`."""
    num_items: Count | None = None
    """Items to make; by default as many as the shape has, 500 for `custom`."""
    mean_length: Positive | None = None
    """Average interactions per user; by default that of the shape, 40 for `custom`."""
    seed: CountOrZero = 0
    """The same seed makes the same interactions, byte for byte."""
    skew: NonNegative = 0.8
    """Popularity among the items of one taste falls as the rank to this power; 0 makes all as popular."""
    order: Annotated[int, Field(ge=1, le=4)] = 1
    """Of how many items the chain has to know the last to foresee the next one."""
    drift: Probability = 0.0
    """Share of the free draws that go to items in season, of which each has one month a year."""
    returns: Probability = 0.0
    """Share of steps, after the first `returns_after`, that bring back one of a user's first 20 items, each once: what
    only a model can foresee whose `max_length` reaches back to them; 0 brings none back."""
    returns_after: Annotated[int, Field(ge=FIRST_SESSION)] = 1_000
    """Interactions before the first return; all users have more than these (with `returns` only)."""

    @model_validator(mode="after")
    def _returns_have_room(self) -> "SyntheticConfig":
        if not self.returns:
            return self
        if self.shape != "custom":
            raise ValueError(
                f"data.synthetic.returns={self.returns:g} needs histories longer than those of "
                f"data.synthetic.shape={self.shape}; drop one of them"
            )
        if self.mean_length is None or self.mean_length <= self.returns_after:
            raise ValueError(
                f"data.synthetic.mean_length={self.mean_length or 40:g} leaves no room for returns after "
                f"data.synthetic.returns_after={self.returns_after} interactions; raise the first or lower the second"
            )
        if self.num_items is not None and self.num_items < 2 * FIRST_SESSION:
            raise ValueError(
                f"data.synthetic.num_items={self.num_items}, but half of the items are those that can return, and a "
                f"user begins with {FIRST_SESSION} of them; make it at least {2 * FIRST_SESSION}"
            )
        return self


class SplitConfig(Section):
    """Which interactions are learned from, and which one of a user's validates and which tests."""

    name: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """`leave_one_out`: a user's last interaction tests, the one before validates, the rest is learned from (the
    papers'); `temporal`: what happened before one moment is learned from, what follows validates up to another, and
    tests from there on, whoever's it is."""
    validation_share: Share = 0.1
    """`temporal`: share of the interactions kept that lies in the time to validate, at least."""
    test_share: Share = 0.1
    """`temporal`: share of the interactions kept that lies in the time to test, at least."""
    validate_from: Moment | None = None
    """`temporal`: where the time to validate begins, in place of shares; a date or Unix seconds."""
    test_from: Moment | None = None
    """`temporal`: where the time to test begins, in place of shares; a date or Unix seconds."""
    target: Literal["last", "first"] = "last"
    """`temporal`: which of a user's interactions in such a time is the one to rank. All that the user had before it is
    known to the model, also from within that time."""

    @model_validator(mode="after")
    def _one_way_to_split(self) -> "SplitConfig":
        fields = type(self).model_fields
        changed = [key for key in fields if key != "name" and getattr(self, key) != fields[key].default]
        if self.name != "temporal" and changed:
            raise ValueError(
                f"data.split.{changed[0]} is for data.split.name=temporal, and data.split.name={self.name} has no use "
                "for it; drop it or set data.split.name=temporal"
            )
        if (self.validate_from is None) != (self.test_from is None):
            given, missing = ("validate_from", "test_from") if self.validate_from else ("test_from", "validate_from")
            raise ValueError(
                f"data.split.{given}={getattr(self, given)} without data.split.{missing}; name both, or neither and "
                "have them found by data.split.validation_share and data.split.test_share"
            )
        if self.validate_from is None or self.test_from is None:
            if self.validation_share + self.test_share >= 1:
                raise ValueError(
                    f"data.split.validation_share={self.validation_share:g} and "
                    f"data.split.test_share={self.test_share:g} leave nothing to learn from; make their sum less than 1"
                )
            return self
        for share in ("validation_share", "test_share"):
            if share in changed:
                raise ValueError(
                    f"data.split.{share}={getattr(self, share):g} is not used where data.split.validate_from and "
                    "data.split.test_from are named; drop one or the other"
                )
        if self.validate_from.seconds >= self.test_from.seconds:
            raise ValueError(
                f"data.split.validate_from={self.validate_from} is not before data.split.test_from={self.test_from}; "
                "swap them or move one"
            )
        return self


Format = Literal[
    "auto",
    "csv",
    "jsonl",
    "parquet",
    "recbole",
    "movielens",
    "netflix",
    "lfm-1b",
    "kuairand",
    "yambda",
    "amazon-2014",
    "amazon-2018",
    "amazon-2023",
    "synthetic",
]
"""Layouts of sources; `data/formats.py` says what each is."""


def _one_a_line(source: object) -> object:
    """A list of places as one text: what is written into a run's `config.yaml`, and what all messages name."""
    return "\n".join(source) if isinstance(source, list) and all(isinstance(s, str) for s in source) else source


def _can_be_named(place: str) -> str:
    """A path, a URI, or several one a line, or a PlaceError; no store is asked."""
    for name in place.splitlines():
        Place.of(name)
    return place


AnyPlace = Annotated[str, AfterValidator(_can_be_named)]
"""A path of this machine, or a URI such as `s3://bucket/folder?endpoint_override=host:port`."""


def _as_text(where: object) -> object:
    """`{is_click: 1}` means the text 1, as it stands in the file."""
    if not isinstance(where, dict):
        return where
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in where.items()}


class DataConfig(Section):
    """Where interactions come from, which of them are kept, and how an epoch is laid out."""

    name: str = "synthetic"
    """What to call this data set in runs and reports."""
    source: Annotated[AnyPlace, BeforeValidator(_one_a_line)] = "synthetic"
    """Raw interactions: a file, a folder, a pattern such as `logs/*.csv`, or a list of these, here or in a store
    (`s3://bucket/logs/*.csv`), text plain or as .gz or .zst; or `synthetic` for the embedded source."""
    format: Format = "auto"
    """Layout of the source; `auto` goes by the file's name. `csv`, `jsonl` and `parquet` have their columns named in
    `columns`, the others are as they were published."""
    columns: Columns = Columns()
    """Names of the columns of a CSV, JSON-lines or Parquet source; in a published format, those that are not to be its
    own, such as `columns: {item: track}` in `lfm-1b`."""
    where: Annotated[dict[str, str], BeforeValidator(_as_text)] = {}  # noqa: RUF012 - pydantic copies it
    """Keeps the rows whose columns read so, such as `{is_click: 1}`; all rows by default."""
    time_unit: Literal["auto", "s", "ms", "us", "date"] = "auto"
    """What the times of the source count: seconds, thousandths, millionths, or `date` for text as in 2005-09-06 or
    2005-09-06 12:30:00; `auto` is the format's own, seconds where it has none."""
    separator: Annotated[str, Field(min_length=1, max_length=2)] = ","
    """What separates the columns of a CSV source."""
    url: Annotated[str, Field(pattern="^(https?://.*)?$")] = ""
    """Where `prepare --download` fetches the source; of a .zip or .tar.gz it keeps the files that `source` names."""
    checksum: Annotated[str, Field(pattern="^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})?$")] = ""
    """What the file at `url` must be, as `md5:…` or `sha256:…`; empty checks nothing."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Size and seed of the embedded source."""
    user_interactions: Interval = Interval("[5,inf)")
    """How many interactions a user must have to be kept; applied together with `item_interactions` until nothing
    changes."""
    item_interactions: Interval = Interval("[5,inf)")
    """How many interactions an item must have to be kept."""
    split: SplitConfig = SplitConfig()
    """What is learned from and what is held out."""
    prepared: AnyPlace = "prepared"
    """Folder, here or in a store, under which prepared data sets are kept, each named by its fingerprint."""
    distributed: Literal["auto"] | bool = "auto"
    """Prepare in tasks of a Ray cluster, part by part, in place of in this process's memory; `auto` does so from about
    30 million interactions on. What is prepared is the same, byte for byte."""
    num_streams: Count = 4
    """Parallel streams an epoch is laid out over; fixes the batches whatever the number of workers, and bounds it."""
    shuffle_interactions: Count = 4_000_000
    """Interactions of a stream that are shuffled together; about 40 bytes of memory each."""

    @model_validator(mode="after")
    def _enough_to_hold_out(self) -> "DataConfig":
        if self.split.name == "leave_one_out" and self.user_interactions.low < 3:
            raise ValueError(
                f"data.user_interactions={self.user_interactions} keeps users with fewer than 3 interactions, but each "
                "user needs one to begin with, one to validate and one to test; start the interval at 3 or more, or "
                "set data.split.name=temporal"
            )
        return self


class LossConfig(Section):
    """What is minimised."""

    name: Literal["auto", "softmax", "sampled_softmax", "bce", "gbce", "bpr"] = "auto"
    """`softmax`: exact cross-entropy over the whole catalogue; `sampled_softmax`: over a sample of it, corrected for
    how likely each item was to be drawn; `bce`, `gbce`, `bpr`: the target against a few negatives. `auto` takes
    `softmax` while the catalogue is short enough for it, and `sampled_softmax` beyond."""
    negatives: CountOrZero = 0
    """Items drawn against each target; 0 takes 4,096 (shared by a micro-batch) for `sampled_softmax`, 256 for `gbce`, 1
    for `bce` and `bpr`. `in_batch` has the micro-batch's own targets instead."""
    sampling: Literal["uniform", "popularity", "in_batch"] = "uniform"
    """Which items are drawn: any alike, in proportion to `count ** popularity_power`, or the micro-batch's targets
    (`sampled_softmax` only)."""
    popularity_power: NonNegative = 0.75
    """How far popular items are preferred: 1 is in proportion to their count, 0 not at all."""
    exclude_history: bool = False
    """Draw no item that stands in the row's own history (`bce`, `gbce`, `bpr`)."""
    calibration: Annotated[float, Field(ge=0, le=1)] = 0.75
    """`gbce`: 0 is `bce`, 1 makes scores calibrated as those of `softmax` (t)."""

    @model_validator(mode="after")
    def _what_is_drawn_is_used(self) -> "LossConfig":
        unused = {
            "negatives": self.name == "softmax" or self.sampling == "in_batch",
            "sampling": self.name == "softmax",
            "popularity_power": self.sampling != "popularity",
            "calibration": self.name != "gbce",
        }
        for key, is_unused in unused.items():
            if is_unused and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"loss.{key}={getattr(self, key)} is not used with loss.name={self.name} and "
                    f"loss.sampling={self.sampling}; drop it"
                )
        if self.sampling == "in_batch" and self.name not in ("auto", "sampled_softmax"):
            raise ValueError(f"loss.sampling=in_batch goes with loss.name=sampled_softmax, not with {self.name}")
        if self.name == "gbce" and self.sampling != "uniform":
            raise ValueError(f"loss.name=gbce is calibrated for uniform draws, not for loss.sampling={self.sampling}")
        if self.exclude_history and self.name not in ("bce", "gbce", "bpr"):
            raise ValueError(
                f"loss.exclude_history is for negatives of one target, but loss.name={self.name} shares its negatives "
                "or has none; drop it or take bce, gbce or bpr"
            )
        return self


class ClozeConfig(Section):
    """Which items of a row are hidden and learned, drawn afresh each epoch."""

    hidden_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability that an item is hidden; if none is, the last one is."""
    only_last_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of rows in which the last item alone is hidden, as when the next item is asked for."""


class TrainConfig(Section):
    """What is learned from, in which steps, and for how long."""

    supervision: Literal["every_position", "last_position", "cloze"] = "every_position"
    """`every_position`: one forward pass learns at each position (causal models only); `last_position`: one sample per
    prefix; `cloze`: items hidden among the others (models that fill gaps)."""
    prefixes_per_user: Literal["all"] | Count = "all"
    """`last_position`: how many prefixes of a user an epoch learns from, drawn afresh each time."""
    cloze: ClozeConfig = ClozeConfig()
    """Which items `cloze` hides."""
    windows: Literal["tile", "overlap", "last"] = "tile"
    """How a history longer than `model.max_length` is cut: side by side at an offset drawn each epoch, overlapping by
    half, or only the last window."""
    epochs: Count = 50
    """Passes over all targets, at most."""
    max_steps: Count | None = None
    """Updates after which training ends at the latest, also in the middle of an epoch; the schedule ends there."""
    batch_targets: Count = 2_048
    """Targets per update, over all workers; a batch may exceed it by part of one history."""
    micro_batch_tokens: Count = 32_768
    """Positions (padding included) that one worker encodes at once; bounds memory. Negatives are drawn for each
    micro-batch; nothing else changes with it."""
    optimizer: Literal["adam", "muon"] = "adam"
    """`adam` for everything (the papers'), or `muon` for the matrices and Adam for the rest."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of Adam."""
    muon_learning_rate: Positive = 0.02
    """Peak learning rate of Muon; follows the same warm-up and schedule."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of Adam's running mean and variance."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of matrices other than the item table."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine that reaches 0 at the end."""
    clip_norm: NonNegative = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    validate_every: Count = 1
    """Epochs between two rankings of the validation items."""
    patience: Count = 10
    """Validations without a better score after which training stops."""
    seed: CountOrZero = 0
    """Fixes initial weights, dropout and the order of the data."""


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


class ScaleConfig(Section):
    """How many workers, and what each is given."""

    workers: Count = 1
    """Training processes, at most `data.num_streams` (or processes that rank, where a run is evaluated)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs if the cluster has one for each worker."""
    threads_per_worker: CountOrZero = 0
    """CPU threads of a worker's arithmetic; 0 divides this machine's cores among the workers."""


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


if TYPE_CHECKING:
    AnyModelConfig = ModelConfig
else:
    AnyModelConfig = Annotated[reduce(or_, (model.Config for model in MODELS.values())), Field(discriminator="name")]


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
        if "stage" in self.engine.extra.get("zero_optimization", {}):
            raise ValueError(
                "engine.extra.zero_optimization.stage: the stage is set by engine.zero_stage; set it there"
            )
        if self.train.optimizer == "muon" and self.engine.name != "torch":
            raise ValueError(
                f"train.optimizer=muon needs whole matrices, which engine.name={self.engine.name} cuts up; "
                "set engine.name=torch or train.optimizer=adam"
            )
        self._supervision_fits()
        return self

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
        if supervision != "last_position" and self.train.prefixes_per_user != "all":
            raise ValueError(
                f"train.prefixes_per_user={self.train.prefixes_per_user} is for train.supervision=last_position, and "
                f"{supervision} has no prefixes; drop it"
            )
