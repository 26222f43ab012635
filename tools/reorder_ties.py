"""Write a source's interactions with ties in time broken another way: how much of a score is the order of ties?

    python tools/reorder_ties.py --ties item --output by-item.csv --config configs/ml-100k.yaml

What ties stands in the order of the `file`, of the `item` (its number, or its text), or at `random`; with
`data.time_precision=float32` more of it does. The output is a CSV of user, item and place in the user's history; train
on it as on any source.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from raysrec.command_line import config_parser, run_verb
from raysrec.config import DataConfig
from raysrec.config.loading import load
from raysrec.data.sources.read import read


def reordered(config: DataConfig, *, ties: str, seed: int = 0) -> pa.Table:
    """Columns user, item and time; time is the place in the user's history under the rule.

    Args:
        config: The source.
        ties: `file`, `item` or `random`.
        seed: Of the random order.
    """
    table = read(config).table
    time = table["time"].to_numpy()
    user = table["user"].combine_chunks().indices.to_numpy()
    order = np.lexsort((_breaks(table, ties, seed), time, user))
    grouped = user[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    columns = {
        name: table[name].combine_chunks().dictionary_decode().take(pa.array(order)) for name in ("user", "item")
    }
    return pa.table({**columns, "time": place})


def _breaks(table: pa.Table, ties: str, seed: int) -> np.ndarray:
    """What decides between two interactions of a user at one time."""
    if ties == "file":
        return np.arange(table.num_rows)
    if ties == "random":
        return np.random.default_rng(seed).permutation(table.num_rows)
    items = table["item"].combine_chunks()
    texts = items.dictionary.to_pylist()
    numbers = all(text.isdecimal() for text in texts)
    rank = np.empty(len(texts), dtype=np.int64)
    rank[sorted(range(len(texts)), key=lambda code: int(texts[code]) if numbers else texts[code])] = np.arange(
        len(texts)
    )
    return rank[items.indices.to_numpy()]


if __name__ == "__main__":
    parser = config_parser("reorder_ties", __doc__)
    parser.prog = "python tools/reorder_ties.py"
    parser.add_argument("--output", type=Path, required=True, help="the CSV to write")
    parser.add_argument("--ties", choices=("file", "item", "random"), default="file", help="default: file")

    def main(arguments) -> None:  # type: ignore[no-untyped-def]
        config = load(arguments.config, arguments.overrides)
        table = reordered(config.data, ties=arguments.ties)
        csv.write_csv(table, arguments.output)
        print(f"{table.num_rows:,} interactions to {arguments.output}")

    run_verb(main, parser)
