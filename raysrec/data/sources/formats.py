"""What each format of a source looks like, and which format a name tells.

Every layout was published; where it is described stands beside it. How a layout is read is the business of `text.py`,
`json_lines.py`, `parquet.py` and `netflix.py`.
"""

import csv
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from raysrec.config import Columns, DataConfig
from raysrec.data.sources.files import SourceError, SourceFile, find_files, names_in, plain_name
from raysrec.data.sources.interactions import Precision


@dataclass(frozen=True)
class Layout:
    """How one kind of file is written, and where its three columns stand."""

    reader: Literal["text", "json_lines", "parquet", "netflix"]
    """Who reads it."""
    files: tuple[str, ...]
    """Patterns of the plain names of such files."""
    columns: tuple[str, str, str]
    """Names of the columns of users, items and times."""
    unit: str = "s"
    """What its times count, as `data.time_unit`."""
    separator: str = ","
    """Text: what stands between two fields."""
    quoted: bool = False
    """Text: may a field stand in double quotes?"""
    names: tuple[str, ...] = ()
    """Text: names of all columns where the file has no header line."""
    typed: bool = False
    """Text: does the header write `name:type`?"""
    precision: Precision = "whole"
    """How exactly its times are kept."""
    where: tuple[tuple[str, str], ...] = ()
    """Columns, and how they must read for a row to be kept."""

    def split(self, line: str) -> list[str]:
        """The fields of a line of text."""
        if self.quoted and len(self.separator) == 1:
            return next(csv.reader([line], delimiter=self.separator), [])
        return line.split(self.separator)


GENERIC = ("csv", "jsonl", "parquet")
"""Formats that say nothing about their columns."""

_OWN = ("user", "item", "time")

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "csv": (Layout("text", ("*.csv", "*.tsv"), _OWN, quoted=True),),
    "jsonl": (Layout("json_lines", ("*.jsonl", "*.json"), _OWN),),
    "parquet": (Layout("parquet", ("*.parquet",), _OWN),),
    # "Atomic files" of https://recbole.io/docs/user_guide/data/atomic_files.html. LFM-1b as the library's conversion
    # writes it has artists_id, albums_id or tracks_id in place of item_id: columns: {item: artists_id}.
    "recbole": (Layout("text", ("*.inter",), ("user_id", "item_id", "timestamp"), separator="\t", typed=True),),
    # https://files.grouplens.org/datasets/movielens/ml-1m-README.txt; ml-20m and ml-32m: …/ml-32m-README.html
    "movielens": (
        Layout(
            "text",
            ("ratings.dat",),
            ("userId", "movieId", "timestamp"),
            separator="::",
            names=("userId", "movieId", "rating", "timestamp"),
        ),
        Layout("text", ("ratings.csv",), ("userId", "movieId", "timestamp"), quoted=True),
    ),
    # README of the Netflix Prize's training set: a file per movie; combined_data_1.txt … hold such files in a row.
    "netflix": (Layout("netflix", ("combined_data_*.txt", "mv_*.txt"), ("user", "movie", "date"), unit="date"),),
    # M. Schedl: The LFM-1b Dataset for Music Retrieval and Recommendation, ICMR 2016, table 1; ids are numbers.
    "lfm-1b": (
        Layout(
            "text",
            ("lfm-1b_les.txt",),
            ("user", "artist", "timestamp"),
            separator="\t",
            names=("user", "artist", "album", "track", "timestamp"),
        ),
    ),
    # https://kuairand.com, "Feature descriptions" of log_*.csv: time_ms is Unix time in thousandths.
    "kuairand": (Layout("text", ("log_*.csv",), ("user_id", "video_id", "time_ms"), unit="ms"),),
    # https://huggingface.co/datasets/yandex/yambda: `flat` has a row an event, `sequential` a row a user, with lists.
    # Its times are seconds since an undisclosed moment, in steps of five.
    "yambda": (Layout("parquet", ("*.parquet",), ("uid", "item_id", "timestamp")),),
    # https://jmcauley.ucsd.edu/data/amazon/index_2014.html: "ratings only" are user, item, rating, timestamp.
    "amazon-2014": (
        Layout(
            "text",
            ("*.csv",),
            ("user", "item", "timestamp"),
            names=("user", "item", "rating", "timestamp"),
        ),
        Layout("json_lines", ("*.json", "*.jsonl"), ("reviewerID", "asin", "unixReviewTime")),
    ),
    # https://nijianmo.github.io/amazon/index.html: "ratings only" are item, user, rating, timestamp.
    "amazon-2018": (
        Layout(
            "text",
            ("*.csv",),
            ("user", "item", "timestamp"),
            names=("item", "user", "rating", "timestamp"),
        ),
        Layout("json_lines", ("*.json", "*.jsonl"), ("reviewerID", "asin", "unixReviewTime")),
    ),
    # https://amazon-reviews-2023.github.io: "rating only" files have a header; times are in thousandths.
    "amazon-2023": (
        Layout("text", ("*.csv",), ("user_id", "parent_asin", "timestamp"), unit="ms", quoted=True),
        Layout("json_lines", ("*.jsonl", "*.json"), ("user_id", "parent_asin", "timestamp"), unit="ms"),
    ),
}

_TOLD = (
    *(("*.inter", "recbole"), ("ratings.dat", "movielens"), ("ratings.csv", "movielens")),
    *(("combined_data_*.txt", "netflix"), ("mv_*.txt", "netflix"), ("lfm-1b_les.txt", "lfm-1b")),
    *(("log_standard_*.csv", "kuairand"), ("log_random_*.csv", "kuairand"), ("reviews_*.json", "amazon-2014")),
    *(("*.csv", "csv"), ("*.tsv", "csv"), ("*.jsonl", "jsonl"), ("*.json", "jsonl"), ("*.parquet", "parquet")),
)
"""Plain names that tell a format; the first that matches counts."""

KNOWN_NAMES = (
    "*.inter, ratings.dat, ratings.csv, combined_data_*.txt, LFM-1b_LEs.txt, *.csv, *.tsv, *.jsonl (each also with .gz "
    "or .zst), *.parquet, or a folder of such files"
)


def places_of(config: DataConfig) -> list[str]:
    """The files, folders and patterns that a source names."""
    return config.source.splitlines() or [config.source]


def format_of(config: DataConfig) -> str:
    """The format of the source, by its name where the config says `auto`.

    Raises:
        SourceError: The name says nothing, or nothing is there.
    """
    if config.format != "auto":
        return config.format
    place = places_of(config)[0]
    name = plain_name(place)
    if name == "synthetic":
        return "synthetic"
    inside = names_in(place)
    if inside is not None:
        formats = [told for told in (_told_by(name, config) for name in inside) if told]
        return "parquet" if "parquet" in formats or not formats else formats[0]
    if told := _told_by(name, config):
        return told
    find_files(place, lambda _: True, "any")  # a wrong name is said to be missing, not to be unknown
    raise SourceError(
        f"data.source={place}: the name does not tell the format; known names are {KNOWN_NAMES}; "
        f"set data.format to {', '.join(LAYOUTS)}"
    )


def belongs(kind: str, name: str) -> bool:
    """Does a file of this plain name in a folder hold interactions in this format?"""
    return any(fnmatchcase(name, pattern) for layout in LAYOUTS[kind] for pattern in layout.files)


def layout_of(config: DataConfig, kind: str, file: SourceFile) -> Layout:
    """How a file is written in this format, under this config's columns, unit of time and conditions.

    Raises:
        SourceError: The separator is two different characters.
    """
    layouts = LAYOUTS[kind]
    end = file.name.rpartition(".")[2]
    layout = next((one for one in layouts if any(pattern.endswith(f".{end}") for pattern in one.files)), layouts[0])
    default, chosen = Columns(), config.columns
    roles = zip(("user", "item", "time"), layout.columns, strict=True)
    columns = [own if getattr(chosen, role) == getattr(default, role) else getattr(chosen, role) for role, own in roles]
    where = tuple(config.where.items())
    layout = replace(layout, columns=(columns[0], columns[1], columns[2]), precision=config.time_precision, where=where)
    if config.time_unit != "auto":
        layout = replace(layout, unit=config.time_unit)
    if kind == "csv":
        separator = separator_of(config)
        layout = replace(layout, separator=separator, quoted=len(separator) == 1)
    return layout


def separator_of(config: DataConfig) -> str:
    """What separates the columns of a CSV source: a tab in `*.tsv` unless the config says otherwise.

    Raises:
        SourceError: Two different characters.
    """
    separator = config.separator.replace("\\t", "\t")
    if separator == "," and plain_name(places_of(config)[0]).endswith(".tsv"):
        return "\t"
    if len(separator) == 2 and separator[0] != separator[1]:
        raise SourceError(f"data.separator={separator!r}: two different characters; write one, or one twice as in '::'")
    return separator


def _told_by(name: str, config: DataConfig) -> str | None:
    """The format that a plain name tells; a CSV whose columns are named is no published one."""
    for pattern, kind in _TOLD:
        if fnmatchcase(name, pattern):
            return "csv" if name.endswith(".csv") and config.columns != Columns() else kind
    return None
