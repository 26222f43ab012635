"""Write the embedded source as Parquet files, anywhere and at any size; `python -m raysrec.synthesize`.

    python -m raysrec.synthesize --output s3://bucket/netflix data.synthetic.shape=netflix

What is written is what `data.source=synthetic` reads, block for block, and is read with `data.source=s3://bucket/netflix
data.format=parquet`. Blocks are made side by side on Ray; a block that is there already is not made again.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.cluster.nodes import wait_for_data_nodes
from raysrec.cluster.runtime import ray_session
from raysrec.command_line import config_parser, run_verb
from raysrec.config import SyntheticConfig
from raysrec.config.loading import load
from raysrec.config.run import RunConfig
from raysrec.data.sources.interactions import INTERACTIONS_SCHEMA
from raysrec.data.synthetic import blocks, settings_json, synthesize_block
from raysrec.errors import LastingError
from raysrec.place import Place
from raysrec.tasks import run_with_ray
from raysrec.tracking.progress import stage

SETTINGS_KEY = b"raysrec.synthetic"
"""Under which a file says what it was made by."""


class OutputError(LastingError):
    """A folder that cannot be written into; the text says why and what to do."""


def write_block(config: SyntheticConfig, block: int, folder: Place) -> int:
    """Write one block, unless it is there, and return how many interactions it has.

    Raises:
        OutputError: A file of that name was made by other settings.
    """
    file, settings = folder / f"part-{block:05d}.parquet", settings_json(config).encode()
    if file.is_file():
        with pq.ParquetFile(file.path, filesystem=file.filesystem) as there:
            if there.schema_arrow.metadata.get(SETTINGS_KEY) != settings:
                raise OutputError(f"{file}: was made by other settings; remove it, or choose another --output")
            return int(there.metadata.num_rows)
    table = synthesize_block(config, block).cast(INTERACTIONS_SCHEMA).replace_schema_metadata({SETTINGS_KEY: settings})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    file.write(buffer.getvalue().to_pybytes())
    return len(table)


def synthesize_to(config: RunConfig, folder: Place, *, say: Callable[[str], None]) -> int:
    """Write all blocks on Ray; how many interactions there are."""
    work = [(block,) for block in range(blocks(config.data.synthetic))]
    if folder.is_local:
        folder.local.mkdir(parents=True, exist_ok=True)  # so that other machines can be asked whether they see it
    with ray_session(config.scale):
        bar, options = partial(stage, say=say), wait_for_data_nodes([folder], config.scale)
        return sum(run_with_ray("writing", partial(_written, config, folder), work, bar=bar, options=options))


def _written(config: RunConfig, folder: Place, block: int) -> Iterator[int]:
    yield write_block(config.data.synthetic, block, folder)


def parser() -> ArgumentParser:
    """Reads the command line of this verb."""
    command_line = config_parser("synthesize", "Write the embedded source as Parquet files.")
    command_line.add_argument("--output", required=True, help="folder or URI to write into")
    return command_line


def main(arguments: Namespace) -> None:
    """Write what the config describes, and say how to read it."""
    config = load(arguments.config, arguments.overrides)
    total = synthesize_to(config, Place.of(arguments.output).absolute(), say=lambda line: print(line, flush=True))
    print(f"{total:,} interactions; read it with data.source={arguments.output} data.format=parquet")


if __name__ == "__main__":
    run_verb(main, parser())
