"""Files in which tasks leave for each other what does not fit into memory: Arrow tables in numbered buckets.

Each task writes one file; a task that wants one bucket of all files reads no more than that of each.
"""

from collections.abc import Iterable

import pyarrow as pa
from pyarrow import fs, ipc

from raysrec.place import Place


def write_buckets(place: Place, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write a file with one bucket for each table."""
    with (
        place.filesystem.open_output_stream(place.path, compression=None) as stream,
        ipc.new_file(stream, schema) as writer,
    ):
        for table in tables:
            # `write_table` would write no batch for an empty table and several for one in chunks.
            columns = [column.combine_chunks() for column in table.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def remove_files(folder: Place, beginning: str) -> None:
    """Remove the files whose names begin so: they have been read by all."""
    for info in folder.filesystem.get_file_info(fs.FileSelector(folder.path)):
        if info.base_name.startswith(beginning):
            folder.filesystem.delete_file(info.path)


def read_bucket(place: Place, number: int = 0) -> pa.Table:
    """One bucket of a file; on this machine it is mapped, so only what is looked at is read."""
    source = pa.memory_map(place.path) if place.is_local else place.filesystem.open_input_file(place.path)
    with ipc.open_file(source) as reader:
        return pa.Table.from_batches([reader.get_batch(number)])
