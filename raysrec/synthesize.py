"""Write the embedded source as Parquet files, anywhere and at any size; `python -m raysrec.synthesize`.

    python -m raysrec.synthesize --output s3://bucket/netflix data.synthetic.shape=netflix

What is written is what `data.source=synthetic` reads, block for block, and is read with `data.source=s3://bucket/netflix
data.format=parquet`. Blocks are made side by side on Ray; a block that is there already is not made again.
"""

from argparse import ArgumentParser, Namespace

import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.command_line import config_parser, load, run_verb
from raysrec.config import RunConfig, SyntheticConfig
from raysrec.data.interactions import INTERACTIONS_SCHEMA
from raysrec.data.synthetic import blocks, settings_json, synthesize_block
from raysrec.place import Place
from raysrec.runtime import ray_session

SETTINGS_KEY = b"raysrec.synthetic"
"""Under which a file says what it was made by."""


class OutputError(ValueError):
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


def synthesize_to(config: RunConfig, folder: Place) -> int:
    """Write all blocks on Ray; how many interactions there are."""
    import ray

    if folder.is_local:
        folder.local.mkdir(parents=True, exist_ok=True)
    number = blocks(config.data.synthetic)
    with ray_session(config.scale):
        write = ray.remote(write_block)
        left = [write.remote(config.data.synthetic, block, folder) for block in range(number)]
        total = 0
        while left:
            ready, left = ray.wait(left)
            total += sum(ray.get(ready))
            print(f"\r{number - len(left)} of {number} files, {total:,} interactions", end="", flush=True)
    print()
    return total


def parser() -> ArgumentParser:
    """Reads the command line of this verb."""
    found = config_parser("synthesize", "Write the embedded source as Parquet files.")
    found.add_argument("--output", required=True, help="folder or URI to write into")
    return found


def main(arguments: Namespace) -> None:
    """Write what the config describes, and say how to read it."""
    config = load(arguments.config, arguments.overrides)
    synthesize_to(config, Place.of(arguments.output))
    print(f"read it with data.source={arguments.output} data.format=parquet")


if __name__ == "__main__":
    run_verb(main, parser())
