"""Files that somebody else may have written: none of them runs code when it is read, and each is refused in words."""

import base64
import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysrec.config import DataConfig
from raysrec.config.files import ConfigError
from raysrec.config.loading import load, validate
from raysrec.data.batching.reading import COLUMNS, footer_of, read_directly
from raysrec.data.prepared import PreparedData, PreparedDataError
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import read
from raysrec.models import build_model
from raysrec.place import Place
from raysrec.prepare import prepare
from raysrec.run_directory import RunDirectory, RunError
from raysrec.saved_model import SavedModelError, load_model


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path):
    """A file that is there when hostile code has run, which no test lets pass."""
    mark = tmp_path / "code-has-run"
    yield mark
    assert not mark.exists()


@pytest.fixture
def run(tmp_path):
    """A run with a model."""
    config = validate({"model": {"name": "gru4rec", "dim": 4, "hidden_dim": 6}, "data": {"synthetic": {}}})
    run = RunDirectory(tmp_path / "run")
    run.start(config, "0123456789abcdef")
    run.save_model(config, 9, build_model(config.model, 9).state_dict())
    return run


@pytest.fixture
def data(tmp_path):
    return prepare(DataConfig.model_validate({"prepared": str(tmp_path / "p"), "synthetic": {"num_users": 50}}))


def test_the_pickles_of_these_tests_do_run_code(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("save", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_weights_that_are_a_pickle_are_refused(run, mark, save):
    with open(run.model_directory / "weights.safetensors", "wb") as file:
        save({"a": Hostile(mark)}, file)
    with pytest.raises(
        SavedModelError, match=r"its model\.json or weights\.safetensors is damaged \(.*train again with --fr"
    ):
        load_model(run.model_directory)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"model": {"name": "os.system", "dim": 4}},
            r"model\.json: describes no model of this raysrec \(KeyError\('os",
        ),
        ({"model": {"name": "gru4rec", "colour": 3}}, r"model\.json: describes no model of this raysrec"),
        ({"num_items": "__import__('os')"}, r"model\.json: describes no model of this raysrec \(ValueError"),
        ({"num_items": 10**14}, r"model\.json: describes no model of this raysrec \(RuntimeError"),
        ({"num_items": 10**30}, r"model\.json: describes no model of this raysrec"),
        ({"num_items": -2}, r"model\.json: describes no model of this raysrec"),
        ({"num_items": 10}, "its weights are of another model"),
    ],
)
def test_a_description_of_no_model_is_refused(run, changes, expected):
    file = run.model_directory / "model.json"
    file.write(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(SavedModelError, match=expected):
        run.load_model()


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000])
def test_a_broken_description_is_refused(run, content):
    (run.model_directory / "model.json").write(content)
    with pytest.raises(SavedModelError, match=r"model\.json"):
        run.load_model()


def test_yaml_that_asks_for_a_call_is_refused(run, mark):
    text = f"data: !!python/object/apply:os.system ['touch {mark}']\n"
    run.config_file.write(text)
    with pytest.raises(
        RunError, match=r"config\.yaml: is no configuration of a run: could not determine a constructor"
    ):
        run.config()
    with pytest.raises(ConfigError, match=r"config\.yaml: is not YAML: could not determine a constructor"):
        load([run.config_file])


@pytest.mark.parametrize("file", ["histories/part-00000.parquet", "catalog.parquet", "manifest.json"])
def test_prepared_data_that_are_a_pickle_are_refused(data, mark, file):
    place = data.directory / file
    place.write(pickle.dumps(Hostile(mark)))
    with pytest.raises(PreparedDataError, match=file):
        PreparedData.open(data.directory)
    footer_of.cache_clear()
    if file.endswith(".parquet"):
        with pytest.raises(PreparedDataError, match=rf"{file}: .*is damaged"):
            data.item_ids(), list(read_directly(data.row_groups()))


def write_disguised(kind, hostile, names, columns, file):
    """Parquet whose first column says it is of an extension type, whose values or description a library unpickles."""
    in_values = kind == "ray.data.arrow_pickled_object"
    storage = pa.large_binary() if in_values else pa.list_(pa.int64())
    value = pa.array([hostile if in_values else [1]] * len(columns[0]), storage)
    table = pa.table([value, *columns[1:]], names)
    metadata = {"ARROW:extension:name": kind, "ARROW:extension:metadata": b"" if in_values else hostile}
    field = table.schema.field(0).with_metadata(metadata)
    buffer = pa.BufferOutputStream()
    # As bytes, since the library that owns the type would refuse to make such a column.
    pq.write_table(table.cast(pa.schema([field, *list(table.schema)[1:]])), buffer)
    file.write(buffer.getvalue().to_pybytes())


@pytest.mark.parametrize("kind", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_pickled_object"])
def test_a_column_that_asks_for_unpickling_is_refused(data, mark, tmp_path, kind):
    import ray.data  # registers these types, and how they are read

    assert ray.data
    hostile = pickle.dumps(Hostile(mark))
    source = Place.of(tmp_path / "a.parquet")
    write_disguised(kind, hostile, ["user", "item", "time"], [["u"], ["a"], [1]], source)
    assert hostile in source.read_bytes() or base64.b64encode(hostile)[:20] in source.read_bytes()
    with pytest.raises(SourceError, match=r"a\.parquet: "):
        read(DataConfig(source=str(source)))
    group = data.row_groups()[0]
    (table,) = read_directly([group])
    write_disguised(kind, hostile, COLUMNS, table.columns, group.path)
    footer_of.cache_clear()
    with pytest.raises(PreparedDataError, match=r"part-00000\.parquet: "):
        list(read_directly([group]))
