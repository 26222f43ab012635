"""The section `data`: interactions, and the layout of an epoch."""

from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raysrec.config.split import SplitConfig
from raysrec.config.synthetic import SyntheticConfig
from raysrec.place import Place
from raysrec.schema import Count, Interval, Section
from raysrec.stores import is_secret


class Columns(Section):
    """The names of the three columns of a source."""

    user: str = "user"
    """Column of user ids; any text or number."""
    item: str = "item"
    """Column of item ids; any text or number."""
    time: str = "time"
    """Column of times; numbers, larger is later."""


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
"""Layouts of sources; `data/sources/formats.py` says what each is."""


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


def _without_credentials(url: str) -> str:
    address = urlsplit(url)
    if "@" in address.netloc or any(is_secret(name) for name, _ in parse_qsl(address.query, keep_blank_values=True)):
        raise ValueError(
            "the URL holds credentials, and it would be logged and saved with every run; take them out, or fetch the "
            "file by hand"
        )
    return url


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
    time_precision: Literal["whole", "float32"] = "whole"
    """How exactly times are known: as whole numbers of `time_unit`, or as RecBole keeps them, to compare with scores
    that were made with it. A float32 knows Unix times of this century to 64 or 128 seconds; what ties then stands in
    the order of the source."""
    separator: Annotated[str, Field(min_length=1, max_length=2)] = ","
    """What separates the columns of a CSV source."""
    url: Annotated[str, Field(pattern="^(https?://.*)?$"), AfterValidator(_without_credentials)] = ""
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
