"""What stands in a prepared data set's `manifest.json`: what it holds, and by which rules it was made."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from raysrec.data.splits import SplitRule
from raysrec.schema import Count, CountOrZero, Interval, Section

FORMAT_VERSION = 3
"""Changes when a folder written before can no longer be read, or not as safely: 3 has a checksum in each page."""


class RowGroupSize(Section):
    """How much a row group holds."""

    users: Count
    """Rows."""
    interactions: Count
    """Items in all its rows together."""
    learned: CountOrZero | None = None
    """Those that are learned from; None where that is all but two of each user."""


class Shard(Section):
    """One Parquet file of histories."""

    file: str
    """Path inside the prepared folder: `histories/part-00000.parquet` and so on, and no other."""
    bytes: Count
    """Size of the file."""
    row_groups: Annotated[tuple[RowGroupSize, ...], Field(min_length=1)]
    """What its row groups hold, in order."""

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        if not re.fullmatch(r"histories/part-\d{5,}\.parquet", file, re.ASCII):
            raise ValueError(
                f"{file!r} is no file of histories such as histories/part-00000.parquet, and may lead out of the folder"
            )
        return file


class Source(Section):
    """What a data set was prepared from."""

    path: str
    """As the config named it; `synthetic` for the embedded source."""
    bytes: CountOrZero
    """Size of all its files as they lie on disk; 0 for the embedded source."""
    sha256: str
    """Of all its files in order, as they lie on disk; of its settings for the embedded source."""


@dataclass(frozen=True)
class HeldOutCounts:
    """The manifest's counts of one split's held-out items, each of another user."""

    users: int
    """Who are ranked."""
    cold_users: int
    """Those of them of whom nothing is learned from."""
    leaked_targets: int
    """Items that lie before an interaction of another user that is learned from."""
    tied_targets: int
    """Items that would be others under another rule for ties."""


class Manifest(Section):
    """What a prepared data set holds and by which rules it was made."""

    format_version: int = FORMAT_VERSION
    """Layout of the folder."""
    name: str
    """What the config that prepared it called it."""
    fingerprint: str
    """Sixteen hexadecimal digits over the source and all rules; the same fingerprint means the same data."""
    source: Source
    """What it was prepared from."""
    left_out_rows: CountOrZero
    """Rows of the source that do not read as `data.where` wants; they count nowhere else."""
    source_users: Count
    """Users in the source, before filtering."""
    source_items: Count
    """Items in the source, before filtering."""
    source_interactions: Count
    """Interactions in the source, before filtering."""
    num_users: Count
    """Users kept."""
    num_items: Count
    """Items kept."""
    num_interactions: Count
    """Interactions kept."""
    num_targets: CountOrZero
    """Training targets: each interaction that is learned from, but for a user's first, which nothing precedes."""
    longest_history: Count
    """Interactions of the user who has most."""
    first_time: int
    """Unix seconds of the earliest interaction kept."""
    last_time: int
    """Unix seconds of the latest interaction kept."""
    split: SplitRule
    """What is learned from and what is held out."""
    num_validation_users: Count
    """Users who have an item to validate on; the others are not ranked then."""
    num_test_users: Count
    """Users who have an item to test on; the others are not ranked then."""
    cold_validation_users: CountOrZero
    """Users ranked to validate none of whose interactions is learned from."""
    cold_test_users: CountOrZero
    """Users ranked to test none of whose interactions is learned from."""
    leaked_validation_targets: CountOrZero
    """Validation items that lie before an interaction of another user that is learned from."""
    leaked_test_targets: CountOrZero
    """Test items that lie before an interaction of another user that is learned from."""
    user_interactions: Interval
    """How many interactions a user must have."""
    item_interactions: Interval
    """How many interactions an item must have."""
    filter_rounds: CountOrZero
    """Rounds of filtering that dropped something."""
    id_rule: str
    """How users and items are numbered, in words."""
    time_rule: str
    """How times are read, in words."""
    tie_rule: str
    """How interactions at the same time are ordered, in words."""
    floored_times: CountOrZero
    """Times of the source that had a fraction."""
    tied_interactions: CountOrZero
    """Interactions at the same time as the one before or after them in the user's history."""
    tied_validation_targets: CountOrZero
    """Users whose validation item would be another one under another rule for ties."""
    tied_test_targets: CountOrZero
    """Users whose test item would be another one under another rule for ties."""
    repeated_interactions: CountOrZero
    """Interactions that a user has with the same item at the same time as another one; they are kept."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    """The files of histories, in order of users."""
    catalog_bytes: Count
    """Size of `catalog.parquet`."""

    @model_validator(mode="after")
    def _adds_up(self) -> "Manifest":
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("its shards name a file twice")
        groups = [group for shard in self.shards for group in shard.row_groups]
        for name, total in (("users", self.num_users), ("interactions", self.num_interactions)):
            held = sum(getattr(group, name) for group in groups)
            if held != total:
                raise ValueError(f"its row groups hold {held} {name} in all, but num_{name} is {total}")
        return self

    def num_ranked(self, split: str) -> int:
        """How many users have an item to rank in `validation` or `test`."""
        return self.held_out(split).users

    def held_out(self, split: str) -> "HeldOutCounts":
        """What is said of `validation` or of `test`."""
        return {
            "validation": HeldOutCounts(
                self.num_validation_users,
                self.cold_validation_users,
                self.leaked_validation_targets,
                self.tied_validation_targets,
            ),
            "test": HeldOutCounts(
                self.num_test_users, self.cold_test_users, self.leaked_test_targets, self.tied_test_targets
            ),
        }[split]
