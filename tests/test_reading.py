"""Damaged, cut and missing files of prepared data: what is read is what was written, or one error names the place."""

import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysrec.cluster.runtime import ray_session
from raysrec.config import DataConfig
from raysrec.config.loading import validate
from raysrec.data.batching.ray_reading import read_with_ray
from raysrec.data.batching.reading import footer_of, read_directly
from raysrec.data.prepared import PreparedData, PreparedDataError
from raysrec.errors import LastingError
from raysrec.evaluate import evaluate
from raysrec.models import build_model
from raysrec.place import Place
from raysrec.prepare import prepare
from raysrec.ranker import validation_sums
from raysrec.run_directory import RunDirectory, RunError
from raysrec.train import train


@pytest.fixture(autouse=True)
def _forget_footers():
    footer_of.cache_clear()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Some twenty row groups in a file of 14 kB."""
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 64)
    return prepare(DataConfig.model_validate({"prepared": str(tmp_path / "prepared"), "synthetic": {"num_users": 150}}))


READS_OR_PREPARES = [
    "data.batching.reading",
    "data.preparing.shares",
    "data.preparing.distributed",
    "data.sources.read",
    "tasks",
]


@pytest.mark.parametrize("module", READS_OR_PREPARES)
def test_a_process_that_only_reads_or_prepares_imports_no_torch(module):
    code = f"import sys, raysrec.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def in_page_of(place, index, column="items"):
    """An offset within a page of this row group."""
    group = pq.ParquetFile(place.path, filesystem=place.filesystem).metadata.row_group(index)
    (chunk,) = [
        group.column(number)
        for number in range(group.num_columns)
        if group.column(number).path_in_schema.split(".")[0] == column
    ]
    return (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size // 2


def flip(place, offset, bit=1):
    """Change one bit and nothing of the size, here or in a store."""
    content = bytearray(place.read_bytes())
    content[offset] ^= bit
    place.write(bytes(content))
    footer_of.cache_clear()


def refusal(read):
    """The text of a PreparedDataError, or empty; and what was read."""
    try:
        return "", read()
    except PreparedDataError as error:
        return str(error), None


def held_by(data):
    return data.item_ids().to_pylist(), data.counts().tolist(), data.train_counts().tolist()


def read_all(data):
    return list(read_directly(data.row_groups()))


def test_any_flipped_bit_is_an_error_or_changes_nothing(data):
    groups = data.row_groups()[:2]
    place, whole = groups[0].path, list(read_directly(groups))
    content, rng = place.read_bytes(), np.random.default_rng(0)
    found = {"refused": 0, "unchanged": 0}
    first_pages = range(0, in_page_of(place, 2), 3)
    for offset in [*first_pages, *range(len(content) - 400, len(content), 7)]:
        flip(place, offset, 1 << int(rng.integers(8)))
        error, tables = refusal(lambda: list(read_directly(groups)))
        if error:
            assert str(place) in error
            found["refused"] += 1
        else:
            assert all(table.equals(other) for table, other in zip(tables, whole, strict=True)), offset
            found["unchanged"] += 1
        place.write(content)
    assert found["refused"] > 0.6 * sum(found.values()) > 200


@pytest.mark.parametrize("column", ["user", "items", "times"])
def test_a_damaged_page_names_the_row_group_and_what_to_do(data, column):
    group = data.row_groups()[3]
    flip(group.path, in_page_of(group.path, 3, column))
    with pytest.raises(PreparedDataError) as error:
        read_all(data)
    assert str(error.value).startswith(f"{group.path}: row group 3 is damaged (")
    assert str(error.value).endswith(
        "; delete this folder and prepare the data again (python -m raysrec.prepare --config …)"
    )
    assert isinstance(error.value, LastingError)


def test_a_file_that_goes_or_is_cut_after_its_folder_was_opened_is_named(data):
    path = data.row_groups()[0].path.local
    content = path.read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        footer_of.cache_clear()
        with pytest.raises(PreparedDataError, match=rf"^{path}: its footer is damaged \("):
            read_all(data)
    path.write_bytes(content)
    reading = read_directly(data.row_groups())
    next(reading)
    path.write_bytes(content[:4000])
    with pytest.raises(PreparedDataError, match=rf"^{path}: row group \d+ is damaged \("):
        list(reading)
    path.unlink()
    with pytest.raises(PreparedDataError, match=rf"^{path}: is missing; delete this folder and prepare the data again"):
        read_all(data)


def test_a_file_of_other_data_is_refused(data, tmp_path):
    other = prepare(
        DataConfig.model_validate({"prepared": str(tmp_path / "o"), "synthetic": {"num_users": 150, "seed": 9}})
    )
    shutil.copy(other.row_groups()[0].path, data.row_groups()[0].path)
    with pytest.raises(PreparedDataError, match=r"row group \d+ should hold \d+ users and \d+ interactions by"):
        read_all(data)


def test_a_damaged_catalogue_is_named(data):
    place = data.directory / "catalog.parquet"
    content = place.read_bytes()
    for offset in range(0, len(content), 17):
        flip(place, offset)
        error, found = refusal(lambda: held_by(PreparedData.open(data.directory)))
        assert f"{place}: " in error if error else found == held_by(data)
        place.write(content)
    place.local.unlink()
    with pytest.raises(PreparedDataError, match=r"catalog\.parquet: is missing"):
        PreparedData(data.directory, data.manifest).item_ids()


@pytest.mark.ray
@pytest.mark.slow
def test_training_and_ranking_in_a_cluster_end_with_the_one_line(data, tmp_path):
    where = {"prepared": str(data.directory.local.parent), "num_streams": 3}
    config = validate(
        {
            "data": {"synthetic": {"num_users": 150}, **where},
            "model": {"name": "sasrec", "dim": 8, "max_length": 20},
            "scale": {"workers": 2, "threads_per_worker": 1},
            "storage": {"root": str(tmp_path / "runs")},
        }
    )
    group = data.row_groups()[3]
    flip(group.path, in_page_of(group.path, 3))
    model = build_model(config.model, data.manifest.num_items)
    run = RunDirectory(tmp_path / "made")
    run.save_model(config, data.manifest.num_items, model.state_dict())
    run.config_file.write("{}")

    def validation():
        return validation_sums(model, data, config, read_with_ray(data.row_groups()))

    with ray_session(config.scale):
        # With `last`, each worker reads all histories before it begins.
        windows, named = {"train": config.train.model_copy(update={"windows": "last"})}, {"name": "last"}
        last = config.model_copy(update={**windows, "storage": config.storage.model_copy(update=named)})
        for use in (lambda: train(config), lambda: train(last), validation, lambda: evaluate(run, data, config)):
            with pytest.raises((PreparedDataError, RunError)) as error, ray_session(config.scale):
                use()
            assert f"{group.path}: row group 3 is damaged (" in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.s3
def test_a_damaged_file_in_a_store_is_named(data, s3):
    uri = f"{s3}/prepared/{data.directory.name}"
    for file in data.directory.local.rglob("*"):
        if file.is_file():
            Place.of(f"{uri}/{file.relative_to(data.directory.local)}").write(file.read_bytes())
    stored = PreparedData.open(uri)
    place = stored.row_groups()[0].path
    content = place.read_bytes()
    flip(place, in_page_of(place, 3))
    with pytest.raises(PreparedDataError, match=rf"^{place}: row group 3 is damaged \("):
        read_all(stored)
    place.write(content[:4000])
    footer_of.cache_clear()
    with pytest.raises(PreparedDataError, match=rf"^{place}: its footer is damaged \("):
        read_all(stored)
    place.write(content)
    footer_of.cache_clear()
    for damage in (lambda: place.write(content[:4000]), lambda: place.write(content[:200])):
        place.write(content)
        reading = read_directly(stored.row_groups())
        next(reading)
        damage()
        with pytest.raises(PreparedDataError, match=rf"^{place}: row group \d+ is damaged \("):
            list(reading)
    place.delete()
    with pytest.raises(PreparedDataError, match=rf"^{place}: is missing; delete this folder and prepare the data"):
        read_all(stored)
