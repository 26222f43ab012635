import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig
from raysrec.data.prepared import HISTORY_SCHEMA, PreparedData, PreparedDataError
from raysrec.prepare import prepare


@pytest.fixture
def data(tmp_path):
    return prepare(DataConfig.model_validate({"prepared": str(tmp_path), "synthetic": {"num_users": 150}}))


def change(data, **settings):
    path = data.directory.local / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(data, expected):
    with pytest.raises(PreparedDataError) as error:
        PreparedData.open(data.directory)
    assert expected in str(error.value)
    assert str(data.directory) in str(error.value)


def test_row_groups_hold_what_the_manifest_says(data):
    user = 1
    for group in data.row_groups():
        table = pq.ParquetFile(group.path).read_row_group(group.index)
        assert table.schema.equals(HISTORY_SCHEMA)
        assert len(table) == group.users
        assert len(pa.concat_arrays(table.column("items").chunks).flatten()) == group.interactions
        assert table.column("user").to_pylist() == list(range(user, user + group.users))
        user += group.users
    assert user - 1 == data.manifest.num_users


def test_counts_are_of_all_and_of_training_interactions(data):
    counts, train_counts = np.zeros((2, data.manifest.num_items + 1), dtype=np.int64)
    for group in data.row_groups():
        for items in pq.ParquetFile(group.path).read_row_group(group.index).column("items").to_pylist():
            np.add.at(counts, items, 1)
            np.add.at(train_counts, items[:-2], 1)
    assert data.counts().tolist() == counts.tolist()
    assert data.train_counts().tolist() == train_counts.tolist()
    assert data.train_counts()[0] == 0


def test_item_ids_stand_at_the_number_of_the_item(data):
    ids = data.item_ids().to_pylist()
    assert ids[0] is None
    assert len(set(ids)) == data.manifest.num_items + 1


def test_a_folder_without_manifest_is_no_prepared_data(tmp_path):
    with pytest.raises(PreparedDataError, match=r"no prepared data here \(there is no manifest\.json\); make it with"):
        PreparedData.open(tmp_path / "nothing")


def test_a_manifest_that_is_no_json_is_refused(data):
    (data.directory / "manifest.json").write('{"format_version": 2, "na')
    refused(data, "manifest.json: is not JSON")


def test_another_version_is_refused(data):
    change(data, format_version=99)
    refused(data, "has format version 99, this raysrec reads 3; delete this folder and prepare the data again")


def test_an_unknown_key_is_refused(data):
    change(data, colour="red")
    refused(data, "colour: Extra inputs are not permitted")


def test_sizes_that_do_not_add_up_are_refused(data):
    change(data, num_users=data.manifest.num_users + 1)
    refused(data, f"its row groups hold {data.manifest.num_users} users in all, but num_users is")


@pytest.mark.parametrize(
    "file",
    [
        *("../x.parquet", "/etc/passwd", "histories/../../part-00000.parquet", "histories//part-00000.parquet"),
        *("s3://other/part-00000.parquet", "file:///etc/passwd", "C:\\part-00000.parquet", "..\\part-00000.parquet"),
        *("histories/part-00000.parquet?endpoint_override=elsewhere", "histories/part-00000.parquet#a", "", "."),
        *("histories/part-00000.parquet\0", "histories/part-00000.parquet\n", "manifest.json", "~/part-00000.parquet"),
        *("histories/.part-00000.parquet", "histories/part-%2e%2e.parquet", "histories/part-٠٠٠٠٠.parquet"),
    ],
)
def test_a_path_out_of_the_folder_is_refused(data, file):
    shard = data.manifest.shards[0].model_dump(mode="json")
    change(data, shards=[shard | {"file": file}])
    refused(data, f"manifest.json: shards.0.file: Value error, {file!r} is no file of histories such as histories/")


def test_a_file_that_is_named_twice_is_refused(data):
    shard = data.manifest.shards[0].model_dump(mode="json")
    sizes = {name: 2 * getattr(data.manifest, name) for name in ("num_users", "num_interactions")}
    change(data, shards=[shard, shard], **sizes)
    refused(data, "its shards name a file twice")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format_version": ' + "9" * 10_000 + "}", "\xff", "null"])
def test_a_manifest_that_is_made_to_break_its_reader_is_refused(data, content):
    (data.directory / "manifest.json").write(content.encode("latin-1"))
    refused(data, "manifest.json: ")


@pytest.mark.parametrize("file", ["histories/part-00000.parquet", "catalog.parquet", "manifest.json", "histories"])
def test_a_link_out_of_the_folder_is_refused(data, tmp_path, file):
    path = data.directory.local / file
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused(data, f"{path}: leads out of the prepared folder")
    path.unlink()
    path.symlink_to(path)
    refused(data, f"{path}: leads out of the prepared folder")


@pytest.mark.parametrize("file", ["histories/part-00000.parquet", "catalog.parquet"])
def test_a_missing_or_cut_file_is_refused(data, file):
    path = data.directory.local / file
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    refused(data, f"{file} has {size - 1} bytes, the manifest says {size}")
    path.unlink()
    refused(data, f"{file} is missing; delete this folder and prepare the data again")
