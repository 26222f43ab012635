import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig, SyntheticConfig
from raysrec.config.loading import load
from raysrec.data.sources.read import read
from raysrec.data.synthetic.walk import USERS_PER_BLOCK
from raysrec.place import Place
from raysrec.prepare import prepare
from raysrec.synthesize import OutputError, main, parser, write_block

SETTINGS = {"num_users": USERS_PER_BLOCK + 50, "num_items": 40, "mean_length": 6, "seed": 2}


@pytest.mark.ray
def test_what_is_written_is_what_the_embedded_source_gives(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: popularity}\n")
    overrides = [f"data.synthetic.{name}={value}" for name, value in SETTINGS.items()]
    written = tmp_path / "written"
    command = ["--config", str(config), *overrides, "--output", str(written)]
    done = subprocess.run(
        [sys.executable, "-m", "raysrec.synthesize", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"read it with data.source={written} data.format=parquet" in done.stdout
    assert sorted(path.name for path in written.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]

    embedded = load([config], overrides).data
    files = DataConfig(source=str(written), format="parquet")
    assert read(files).table.to_pylist() == read(embedded).table.to_pylist()
    made = [prepare(data.model_copy(update={"prepared": str(tmp_path)})) for data in (embedded, files)]
    shards = [[(data.directory / shard.file).read_bytes() for shard in data.manifest.shards] for data in made]
    assert shards[0] == shards[1]


def test_a_block_that_is_there_is_not_made_again(tmp_path):
    folder, config = Place.of(tmp_path), SyntheticConfig(num_users=30)
    interactions = write_block(config, 0, folder)
    stamp = (tmp_path / "part-00000.parquet").stat().st_mtime_ns
    assert write_block(config, 0, folder) == interactions == pq.read_metadata(tmp_path / "part-00000.parquet").num_rows
    assert (tmp_path / "part-00000.parquet").stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match="made by other settings; remove it"):
        write_block(config.model_copy(update={"seed": 1}), 0, folder)


def test_output_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(parser().parse_args(["--config", "x.yaml"]))
    assert "--output" in capsys.readouterr().err
