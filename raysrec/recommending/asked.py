"""Users who are to be recommended something: users of the prepared data, or of a file of histories of its own.

Of prepared data whole row groups are read. A file, however long, is first dealt into shares of its users, by the same
pieces and buckets as `data/preparing/` deals a source, with the items' numbers of the run's catalogue; a share then is
what is read at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysrec.config import DataConfig
from raysrec.data.arrays import IntArray, offsets_of
from raysrec.data.batching.reading import COLUMNS, consecutive, read_directly
from raysrec.data.histories import Histories
from raysrec.data.prepared import PreparedData, RowGroup
from raysrec.data.preparing.dealing import about_interactions, deal_source
from raysrec.data.preparing.shares import joined_share
from raysrec.data.sources.files import NoInteractions, SourceError, SourceFile
from raysrec.place import Place
from raysrec.schema import Count, CountOrZero, Section
from raysrec.tasks import Run

AT_ONCE = 1 << 17
"""Interactions of the users who are recommended to together: the least that is worth a file."""
LARGEST_SHARE, SHARES = 1 << 21, 1 << 8
"""A long file is dealt into so many shares, or into more where they would have more interactions than this."""
EXAMPLES = 5
"""Ids that are named where some were left out."""


class Some(Section):
    """How many there are of something that was left out, and who or what for example."""

    count: CountOrZero = 0
    """How many."""
    examples: tuple[str, ...] = ()
    """The first few ids."""

    def __add__(self, other: "Some") -> "Some":
        return Some(count=self.count + other.count, examples=(self.examples + other.examples)[:EXAMPLES])

    @classmethod
    def of(cls, ids: pa.Array) -> "Some":
        """All of these."""
        return cls(count=len(ids), examples=tuple(ids[:EXAMPLES].to_pylist()))


@dataclass(frozen=True, eq=False)
class Asked:
    """Some users, and how much is known of them."""

    user_ids: pa.Array
    """External ids."""
    histories: Histories
    """Of the same users; their items as the run's catalogue numbers them."""
    stops: IntArray
    """How many of each history's interactions are read; 0 or less for a user who is left out."""
    unknown: int = 0
    """Interactions that were left out of the histories, with items that are not in the catalogue."""


def units_of(groups: Sequence[RowGroup]) -> list[list[int]]:
    """Consecutive row groups that are recommended to together, by their places in the list."""
    return consecutive(groups, AT_ONCE)


def prepared_users(data: PreparedData, groups: Sequence[RowGroup], until: str, only: pa.Array | None = None) -> Asked:
    """Users of these row groups.

    Args:
        data: The prepared data.
        groups: Some of its row groups, at least one.
        until: `all` of a history is read, or what came before its item to rank in `test` or `validation`.
        only: External ids of the users who are asked about; None for all.
    """
    table = pa.concat_tables(read_directly(groups, [*COLUMNS[:1], "user_id", *COLUMNS[1:]])).combine_chunks()
    if only is not None:
        table = table.filter(pc.is_in(table["user_id"], value_set=only)).combine_chunks()
    user_ids = table["user_id"].combine_chunks()
    histories = Histories.of([table])
    stops = histories.lengths
    if until != "all":
        stops = data.manifest.split.positions(histories.offsets, histories.times).held_out[until]
    return Asked(_one(user_ids), histories, stops)


def groups_with(groups: Sequence[RowGroup], ids: pa.Array) -> tuple[list[int], Some]:
    """The places of the row groups in which some of these users are, and the ids that are nobody's."""
    found, kept = np.zeros(len(ids), bool), []
    for place, group in enumerate(groups):
        (table,) = read_directly([group], [*COLUMNS[:1], "user_id", *COLUMNS[1:]])
        here = pc.is_in(ids, value_set=_one(table["user_id"].combine_chunks())).to_numpy(zero_copy_only=False)
        if here.any():
            found |= here
            kept.append(place)
    return kept, Some.of(ids.filter(pa.array(~found)))


def read_ids(name: str) -> pa.Array:
    """The ids in a text file, one a line, each once; spaces around them and empty lines do not count.

    Raises:
        SourceError: There is no such file, it is no text, or holds no id.
    """
    file = SourceFile(Place.of(name))
    try:
        with file.open() as stream:
            lines = bytes(stream.readall()).decode().splitlines()
    except FileNotFoundError:
        raise SourceError(f"{file}: there is no such file") from None
    except IsADirectoryError:
        raise SourceError(f"{file}: is a folder; name a text file with an id a line") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: is no text ({error}); expected an id a line") from None
    ids = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not ids:
        raise SourceError(f"{file}: holds no id; expected one a line")
    return pa.array(list(ids), pa.string())


class DealtUsers(Section):
    """A file of histories that has been dealt into shares of its users."""

    folder: str
    """Where the shares lie."""
    pieces: tuple[tuple[str, int], ...]
    """Name of each piece, and how many interactions there are before it."""
    num_shares: Count
    """How many shares there are; some may have no users."""
    per_second: Count
    """How much of its times is a second."""
    interactions: Count
    """Of all users."""
    unknown_items: Some
    """Items that are not in the catalogue."""


def deal_users(config: DataConfig, item_ids: pa.Array, folder: Place, run: Run) -> DealtUsers:
    """Read a file of histories, and deal it into shares of its users.

    Args:
        config: How it is read.
        item_ids: External ids of the catalogue, at the index of the item's number.
        folder: Where to write; all machines of the cluster must reach it.
        run: Who reads.

    Raises:
        SourceError: It cannot be read, or no item in it is known.
    """
    about = about_interactions(config)
    num_shares = max(1, min(SHARES, about // AT_ONCE), about // LARGEST_SHARE)
    folder.filesystem.create_dir(folder.path)
    unknown, known = dict[str, None](), False

    def number(ids: pa.Array) -> NDArray[np.int32]:
        nonlocal known
        numbers = pc.index_in(ids, value_set=item_ids).fill_null(0)  # 0 of the catalogue is padding
        absent = ids.filter(pc.equal(numbers, 0)).to_pylist()
        unknown.update(dict.fromkeys(absent))
        known |= len(absent) < len(ids)
        found: NDArray[np.int32] = numbers.to_numpy().astype(np.int32)
        return found

    dealt = deal_source(config, folder, num_shares, run, stage="reading histories", number_items=number)
    if not known:
        raise NoInteractions(
            f"data.source={config.source}: none of its {len(unknown):,} items is in the run's catalogue, such as "
            f"{', '.join(list(unknown)[:EXAMPLES])}, where there are such as {', '.join(item_ids[1:4].to_pylist())}; "
            "name a file with the same ids, or the right column with data.columns.item"
        )
    return DealtUsers(
        folder=str(folder),
        pieces=dealt.pieces,
        num_shares=num_shares,
        per_second=dealt.per_second,
        interactions=dealt.interactions,
        unknown_items=Some(count=len(unknown), examples=tuple(list(unknown)[:EXAMPLES])),
    )


def dealt_users(dealt: DealtUsers, share: int) -> Asked:
    """The users of a share; they have no number, so a model that knows users by number can say nothing of them."""
    grouped = joined_share(Place(dealt.folder), dealt.pieces, share)
    known = grouped.items > 0
    offsets = offsets_of(known)[grouped.offsets]
    histories = Histories(
        users=np.zeros(len(grouped.user_ids), np.int64),
        offsets=offsets,
        items=grouped.items[known].astype(np.int64),
        times=grouped.times[known] // dealt.per_second,
    )
    return Asked(grouped.user_ids, histories, np.diff(offsets), unknown=int(np.count_nonzero(~known)))


def _one(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
