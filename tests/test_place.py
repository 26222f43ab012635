import os
import pickle
from pathlib import Path

import pytest
from pyarrow import fs
from pydantic import ValidationError

from raysrec.config.files import ConfigError
from raysrec.config.loading import validate
from raysrec.config.run import RunConfig
from raysrec.config.settings import nest, overlay
from raysrec.place import Place, PlaceError
from raysrec.stores import DEFAULTS, OPTIONS, failure_of, parse


def test_a_path_and_a_file_uri_are_the_same_place_of_this_machine(tmp_path):
    here, there = Place.of(tmp_path) / "a" / "b.txt", Place.of(f"file://{tmp_path}/a/b.txt")
    here.write("text")
    assert here.local == there.local == tmp_path / "a" / "b.txt"
    assert there.read_text() == here.read_text() == "text"
    assert there.is_file()
    assert not (there / "c").exists()
    assert Path(here) == tmp_path / "a" / "b.txt"


@pytest.mark.parametrize(
    ("name", "part", "joined", "path"),
    [
        ("runs", "one", "runs/one", "runs/one"),
        ("runs/", "one", "runs/one", "runs/one"),
        (".", "one", "./one", "./one"),
        ("/", "one", "/one", "/one"),
        ("s3://bucket", "one", "s3://bucket/one", "bucket/one"),
        ("s3://bucket/a/", "b/c", "s3://bucket/a/b/c", "bucket/a/b/c"),
        ("s3://bucket/a?region=x&scheme=http", "b", "s3://bucket/a/b?region=x&scheme=http", "bucket/a/b"),
        ("s3://bucket/100%/it's a#b", "c d", "s3://bucket/100%/it's a#b/c d", "bucket/100%/it's a#b/c d"),
        ("gs://bucket/a", "b", "gs://bucket/a/b", "bucket/a/b"),
    ],
)
def test_a_part_is_added_to_the_path_and_the_query_stays(name, part, joined, path):
    place = Place.of(name) / part
    assert (str(place), place.path, place.name) == (joined, path, part.rpartition("/")[2])
    assert place.at(place.path) == place


def test_a_relative_place_is_one_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Place.of("a").absolute() == Place.of(tmp_path / "a")
    assert Place.of("s3://bucket/a").absolute() == Place.of("s3://bucket/a")


def test_only_the_name_of_a_place_travels(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thisisverysecret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "thisisthekey")
    place = Place.of("s3://bucket/a?endpoint_override=localhost:1&max_attempts=3&scheme=http&anonymous=false&region=x")
    assert isinstance(place.filesystem, fs.S3FileSystem)
    for thing in (place, place.filesystem):
        sent = pickle.dumps(thing)
        assert b"thisis" not in sent
        assert pickle.loads(sent) == thing
    assert pickle.loads(pickle.dumps(place.filesystem)) is place.filesystem  # the same address, the same patience
    assert "thisis" not in repr(place)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA123:hu/nter2@bucket/a",
        "s3://AKIA123:hunter2@bucket/a?region=x",
        "s3://hunter2@bucket",
        "gs://hunter2@bucket/a",
        "s3://bucket/a?access_key=AKIA123&secret_key=hunter2",
        "s3://bucket/a?session_token=hunter2",
        "gs://bucket/a?access_token=hunter2",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(PlaceError, match=r"the URI holds credentials, .* give them in the environment") as error:
        Place.of(uri)
    assert "hunter2" not in str(error.value)
    assert "AKIA" not in str(error.value)


@pytest.mark.parametrize("key", ["data.source", "data.prepared", "storage.root"])
def test_credentials_in_a_setting_are_refused_and_not_repeated(key):
    settings = overlay({"model": {"name": "recgrela"}}, nest(key, "s3://AKIA123:hunter2@bucket/a"))
    with pytest.raises(ConfigError, match=f"{key}: s3://…: the URI holds credentials") as error:
        validate(settings)
    with pytest.raises(ValidationError) as raw:
        RunConfig.model_validate(settings)
    for text in (str(error.value), str(raw.value)):
        assert "hunter2" not in text
        assert "AKIA" not in text


@pytest.mark.parametrize("url", ["https://me:hunter2@host/a.zip", "https://host/a.zip?X-Amz-Signature=hunter2"])
def test_credentials_in_the_address_of_a_source_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match=r"^data\.url: the URL holds credentials, and it would be logged") as error:
        validate({"model": {"name": "popularity"}, "data": {"source": "a.csv", "url": url}})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s4://bucket/a", "s4://… is not a known store; did you mean s3?; known: s3, gs, file"),
        ("hdfs://bucket/a", "hdfs://… is not a known store; known: s3, gs, file"),
        (
            "s3://bucket/a?endpoint=x",
            "s3://bucket/a: endpoint is not an option; did you mean endpoint_override?; known",
        ),
        ("s3://bucket/a?regiom=x", "s3://bucket/a: regiom is not an option; did you mean region?; known"),
        ("gs://bucket/a?region=x", "gs://bucket/a: region is not an option; known: endpoint_override, scheme"),
        ("s3:///a?region=x", "s3:///a?region=x: names no bucket"),
        ("s3://", "s3://: names no bucket; write s3://bucket/folder"),
    ],
)
def test_a_store_or_an_option_that_is_not_known_is_refused(uri, message):
    with pytest.raises(PlaceError) as error:
        Place.of(uri)
    assert message in str(error.value)


@pytest.mark.parametrize("option", ["anonymous=yes", "max_attempts=0", "request_timeout=1.5", "connect_timeout=x"])
def test_an_option_without_sense_is_refused(option):
    with pytest.raises(PlaceError, match=rf"s3://bucket/a: {option}: expected "):
        Place.of(f"s3://bucket/a?{option}&region=x").info()


def test_every_option_is_taken(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere:1/")
    values = {"endpoint_override": "127.0.0.1:2", "scheme": "http", "region": "eu", "anonymous": "true"}
    for scheme in ("s3", "gs"):
        given = {name: values.get(name, DEFAULTS.get(name, "true")) for name in OPTIONS[scheme]}
        place = Place.of(f"{scheme}://bucket/a?" + "&".join(f"{name}={value}" for name, value in given.items()))
        assert place.filesystem.type_name == {"s3": "s3", "gs": "gcs"}[scheme]
        if scheme == "s3":
            sent = dict(place.filesystem.made_of[1][0])
            assert sent["endpoint_override"] == "127.0.0.1:2"
            assert (sent["region"], sent["anonymous"], sent["force_virtual_addressing"]) == ("eu", True, True)


def test_the_endpoint_is_that_of_the_uri_or_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for variable, uri, endpoint, scheme in (
        ("http://one:1/", "s3://b/a", "one:1", "http"),
        ("http://one:1", "s3://b/a?endpoint_override=two:2", "two:2", "https"),
        ("", "s3://b/a?endpoint_override=http://two:2", "two:2", "http"),
        ("", "s3://b/a", None, "https"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", variable)
        sent = dict(Place.of(uri).filesystem.made_of[1][0])
        assert (sent["endpoint_override"], sent["scheme"]) == (endpoint, scheme)


def test_what_is_needed_here_cannot_lie_in_a_store():
    with pytest.raises(PlaceError, match="s3://bucket/a: lies in a store and is needed on this machine"):
        os.fspath(Place.of("s3://bucket/a"))


def test_a_failure_that_is_no_stores_is_left_as_it_is(tmp_path):
    assert failure_of(OSError("No space left on device"), {}) is None
    with pytest.raises(FileNotFoundError, match=r"nothing: there is no such file"):
        Place.of(tmp_path / "nothing").read_bytes()
    with pytest.raises(OSError, match=r"[Dd]irectory"):
        Place.of(tmp_path).read_bytes()


def test_a_failure_that_nobody_knows_is_told_as_it_came():
    assert failure_of(OSError("AWS Error NEW_KIND: so it is"), {}) == "AWS Error NEW_KIND: so it is"
    assert parse("s3://b/a?max_attempts=3").options == {"max_attempts": "3"}


def test_a_failure_while_writing_leaves_the_old_text_and_nothing_else(tmp_path):
    place = Place.of(tmp_path / "a.json")
    place.write("old")
    with pytest.raises(UnicodeEncodeError):
        place.write("new" * 100_000 + "\udc80")
    with pytest.raises(FileNotFoundError), place.replacing() as temporary:
        (temporary.write_text("ne"), Path(tmp_path / "nothing").read_text())
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_killed_process_leaves_the_old_file_and_the_next_one_replaces_it(tmp_path):
    place = Place.of(tmp_path / "a.json")
    place.write("old")
    child = os.fork()
    if child == 0:
        with place.replacing() as temporary:
            temporary.write_text("ne")
            os._exit(9)
    os.waitpid(child, 0)
    assert place.read_text() == "old"
    place.write("new")
    assert place.read_text() == "new"


def test_files_and_folders_are_removed_whether_or_not_they_are_there(tmp_path):
    folder = Place.of(tmp_path) / "folder"
    (folder / "inner" / "a").write(b"")
    for place in (folder / "inner" / "a", folder, folder):
        place.delete()
        assert not place.exists()
    assert folder.below() == []
