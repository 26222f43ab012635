"""Sources and prepared data in a real S3 server, well and failing."""

import gzip
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from run_folders import record_of
from s3_proxy import Fault
from s3_server import free_ports, wait_for

from raysrec import prepare as verb
from raysrec import report, stores
from raysrec.command_line import run_verb
from raysrec.config import DataConfig
from raysrec.config.loading import validate
from raysrec.config.run import RunConfig
from raysrec.data.batching.loader import epoch_steps
from raysrec.data.batching.reading import footer_of, read_directly
from raysrec.data.prepared import PreparedData, PreparedDataError
from raysrec.data.preparing import publishing
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import read
from raysrec.models import build_model
from raysrec.place import Place, PlaceError
from raysrec.prepare import find_prepared, prepare
from raysrec.run_directory import RunDirectory, RunError
from raysrec.tasks import run_here
from raysrec.tracking.recorder import Recorder

pytestmark = pytest.mark.s3

LINES = [(f"u{n % 17}", f"i{n * n % 31}", n) for n in range(2000)]
PATIENT = "max_attempts=3&request_timeout=1&connect_timeout=1"
HASTY = "max_attempts=2&request_timeout=1&connect_timeout=1"
"""Options that let a test wait for seconds where a user waits for minutes."""


def csv(lines):
    return "user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in lines)


def data_config(source, prepared, **settings):
    loose = {"user_interactions": "[3,inf)", "item_interactions": "[1,inf)", "prepared": str(prepared)}
    return DataConfig.model_validate({"source": source} | loose | settings)


def contents(folder):
    place = Place.of(folder)
    return {info.path[len(place.path) :]: place.at(info.path).read_bytes() for info in place.below() if info.is_file}


@pytest.fixture
def source(s3):
    """A source in a store."""
    place = Place.of(s3) / "raw" / "a.csv"
    place.write(csv(LINES))
    return place


def test_a_place_in_a_store_is_written_read_listed_and_removed(s3):
    folder = Place.of(s3) / "it's a/100%"
    large = os.urandom(7_000_000)
    (folder / "large").write(large)
    (folder / "b" / "text").write("text")
    assert (folder / "large").read_bytes() == large
    with (folder / "large").at_hand() as file:
        assert file.read_bytes() == large
    assert not file.exists()
    assert (folder / "b").exists()
    assert not (folder / "b").is_file()
    assert not (folder / "c").exists()
    assert {info.base_name: info.size for info in folder.below() if info.is_file} == {"large": 7_000_000, "text": 4}
    assert [info.base_name for info in folder.below(recursive=False)] == ["b", "large"]
    before = (folder / "large").stamp()
    (folder / "large").write(large[::-1])  # as long as before, and perhaps within the same second
    assert (folder / "large").stamp() != before
    with pytest.raises(FileNotFoundError, match="c: there is no such file"):
        (folder / "c").read_bytes()
    for place in (folder / "large", folder, folder):
        place.delete()
        assert not place.exists()


@pytest.mark.parametrize("named", ["", "/raw", "/raw/*.csv", "/raw/a.csv\n{s3}/raw/b.csv.gz"])
def test_a_source_in_a_store_is_read_as_one_on_this_machine(s3, tmp_path, named):
    (tmp_path / "raw").mkdir()
    for folder in (Place.of(tmp_path), Place.of(s3)):
        (folder / "raw" / "a.csv").write(csv(LINES))
        (folder / "raw" / "b.csv.gz").write(gzip.compress(csv(LINES[::-1]).encode(), mtime=0))
        (folder / "raw" / "c.csv.zst").write(pa.compress(csv(LINES).encode(), "zstd", asbytes=True))
    (one, other) = (
        read(data_config(f"{folder}{named}".format(s3=folder), "", format="csv")).table.to_pylist()
        for folder in (tmp_path, s3)
    )
    assert one == other
    assert len(one) >= len(LINES)


def test_a_missing_source_in_a_store_names_its_neighbour_and_a_missing_bucket_itself(source):
    with pytest.raises(SourceError, match=r"data.source=s3://.*/b\.csv: there is no such file; did you mean a\.csv\?"):
        read(data_config(str(source.at(source.path.replace("a.csv", "b.csv"))), ""))
    for name in ("s3://no-such-bucket/a.csv", "s3://no-such-bucket/*.csv"):
        with pytest.raises(PlaceError, match=r"there is no bucket no-such-bucket; make it, or fix its name"):
            read(data_config(name, "", format="csv"))


def test_what_is_prepared_in_a_store_equals_what_is_prepared_here_byte_for_byte(source, s3, tmp_path, monkeypatch):
    monkeypatch.setattr("raysrec.data.preparing.writing.LARGEST_ROW_GROUP", 100)
    monkeypatch.setattr("raysrec.data.preparing.writing.ROW_GROUPS", 4)
    stored = prepare(data_config(str(source), f"{s3}/prepared"))
    here = prepare(data_config(str(source), tmp_path / "prepared"))
    assert len(stored.manifest.shards) > 1
    assert contents(stored.directory) == contents(here.directory)
    assert stored.manifest == here.manifest
    groups = stored.row_groups()[::-1] + stored.row_groups()[:3]
    expected = read_directly(here.row_groups()[::-1] + here.row_groups()[:3])
    assert all(one.equals(other) for one, other in zip(read_directly(groups), expected, strict=True))
    assert stored.item_ids().equals(here.item_ids())
    before = contents(stored.directory)
    assert (
        prepare(data_config(str(source), f"{s3}/prepared"))
        == stored
        == find_prepared(data_config(str(source), s3 + "/prepared"))
    )
    assert contents(stored.directory) == before


def test_what_tasks_prepare_in_a_store_equals_what_is_prepared_here(source, s3, tmp_path, monkeypatch):
    @contextmanager
    def no_session(*_, **__):
        yield

    monkeypatch.setattr("raysrec.prepare.ray_session", no_session)
    monkeypatch.setattr("raysrec.prepare.wait_for_data_nodes", lambda *_: {})
    monkeypatch.setattr("raysrec.prepare.run_with_ray", run_here)
    monkeypatch.setattr("raysrec.data.preparing.distributed.SHARE_INTERACTIONS", 500)
    here = prepare(data_config(str(source), tmp_path / "prepared"))
    config = data_config(str(source), f"{s3}/prepared", distributed=True)
    folder = Place.of(config.prepared) / here.manifest.fingerprint
    left = folder / "scratch-0" / "pieces-0"
    left.write("of a killed process")

    whole = prepare(config)
    assert contents(whole.directory) == {**contents(here.directory), "/scratch-0/pieces-0": b"of a killed process"}
    (folder / "manifest.json").delete()
    assert find_prepared(config) is None
    monkeypatch.setattr(publishing, "ABANDONED_AFTER", timedelta(0))
    time.sleep(1)  # a store counts whole seconds
    assert contents(prepare(config).directory) == contents(here.directory)


def test_a_source_that_changes_while_it_is_read_is_refused(source, s3, monkeypatch):
    def read_and_change(config):
        found = read(config)
        source.write(csv(LINES[::-1]))
        return found

    monkeypatch.setattr("raysrec.data.preparing.in_memory.read", read_and_change)
    with pytest.raises(SourceError, match="changed while it was read"):
        prepare(data_config(str(source), f"{s3}/prepared"))


def test_what_is_half_uploaded_is_never_taken_for_whole(source, s3, monkeypatch):
    config = data_config(str(source), f"{s3}/prepared")
    whole = prepare(config)
    expected = contents(whole.directory)
    order, real = [], Place.upload
    monkeypatch.setattr(Place, "upload", lambda place, file: (order.append(place.name), real(place, file)))
    for stop_before in range(len(expected)):
        whole.directory.delete()
        order.clear()

        def upload_or_die(place, file, stop_before=stop_before):
            if len(order) == stop_before:
                raise KeyboardInterrupt
            order.append(place.name)
            real(place, file)

        monkeypatch.setattr(Place, "upload", upload_or_die)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
        assert "manifest.json" not in order
        assert len(contents(whole.directory)) == stop_before
        assert find_prepared(config) is None
        with pytest.raises(PreparedDataError, match=r"no prepared data here \(there is no manifest\.json\)"):
            PreparedData.open(whole.directory)
    monkeypatch.setattr(Place, "upload", real)
    prepare(config)
    assert contents(whole.directory) == expected


@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_a_folder_that_lost_something_after_its_manifest_is_made_again(source, s3, harm):
    config = data_config(str(source), f"{s3}/prepared")
    data = prepare(config)
    expected = contents(data.directory)
    shard = data.directory / data.manifest.shards[0].file
    shard.delete() if harm == "removed" else shard.write(shard.read_bytes()[:-1])
    with pytest.raises(PreparedDataError, match="is missing" if harm == "removed" else r"has \d+ bytes, the manifest"):
        PreparedData.open(data.directory)
    prepare(config)
    assert contents(data.directory) == expected


def test_two_that_prepare_at_the_same_time_do_not_hurt_each_other(source, s3, monkeypatch):
    config = data_config(str(source), f"{s3}/prepared")
    both_have_written = threading.Barrier(2, timeout=60)
    upload = publishing._upload

    def wait_and_upload(*arguments):
        both_have_written.wait()
        upload(*arguments)

    monkeypatch.setattr(publishing, "_upload", wait_and_upload)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [config, config])
    assert first == second == PreparedData.open(first.directory)
    assert len(list(read_directly(first.row_groups()))) == len(first.row_groups())


def test_a_store_that_holds_something_else_than_it_was_sent_gets_no_manifest(source, s3, monkeypatch):
    def upload_less(place, file):
        with place.filesystem.open_output_stream(place.path) as stream:
            stream.write(file.read_bytes()[:-1])

    monkeypatch.setattr(Place, "upload", upload_less)
    config = data_config(str(source), f"{s3}/prepared")
    with pytest.raises(PlaceError, match=r"catalog\.parquet: has \d+ bytes, but \d+ were sent to it"):
        prepare(config)
    assert find_prepared(config) is None


FAULTS = {
    "500": Fault(2, status=500),
    "503": Fault(2, status=503),
    "dropped": Fault(2, drop_after=1000),
    "dropped at once": Fault(1, drop_after=0),
    "gone": Fault(2, gone=True),
    "slow": Fault(1, delay_s=2),
    "stalled": Fault(1, stall_after=1000),
}

IN_A_BODY = {"dropped", "dropped at once", "stalled"}
"""Only what is read has a body that can end early; "gone" befalls the whole answer."""


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method in ("GET", "HEAD", "PUT")
        for name in FAULTS
        if method == "GET" or name not in IN_A_BODY
    ],
)
def test_a_store_that_fails_for_a_while_is_asked_again(source, s3, proxy, tmp_path, name, method):
    fault = FAULTS[name]
    proxy.faults.append(Fault(**(vars(fault) | {"method": method})))
    stored = prepare(data_config(f"{source}?{PATIENT}", f"{s3}/prepared?{PATIENT}"))
    assert proxy.faults[0].times == 0
    here = prepare(data_config(f"{source}?{PATIENT}", tmp_path / "prepared"))
    assert contents(stored.directory) == contents(here.directory)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(math.inf, status=500), r"the store failed, 2 times; run this again when it is well \(.*500"),
        (Fault(math.inf, drop_after=1000), r"or its answers broke off, 2 times; see that endpoint_override or AWS_END"),
        (Fault(math.inf, delay_s=3), r"could not be reached, or its answers broke off, 2 times; see that"),
    ],
    ids=["500", "dropped", "slow"],
)
def test_a_store_that_goes_on_failing_is_given_up_with_one_clear_error(source, s3, proxy, tmp_path, fault, words):
    data = prepare(data_config(str(source), f"{s3}/prepared"))
    proxy.faults.append(Fault(**(vars(fault) | {"key": "raw/a.csv"})))
    with pytest.raises(SourceError, match=rf"data\.source: {re.escape(str(source))}\?.*{words}"):
        prepare(data_config(f"{source}?{HASTY}", tmp_path))
    proxy.faults[:] = [Fault(**(vars(fault) | {"key": "part-00000"}))]
    footer_of.cache_clear()
    again = PreparedData.open(f"{data.directory}?{HASTY}")
    with pytest.raises(PlaceError, match=rf"part-00000.parquet\?.*{words}"):
        list(read_directly(again.row_groups()))


def test_a_store_that_cannot_be_written_to_is_given_up_with_one_clear_error(source, s3, proxy):
    proxy.faults.append(Fault(math.inf, method="PUT", status=503))
    with pytest.raises(PlaceError, match=r"catalog\.parquet\?.*the store failed, 2 times"):
        prepare(data_config(str(source), f"{s3}/prepared?{HASTY}"))
    proxy.faults.clear()
    assert find_prepared(data_config(str(source), f"{s3}/prepared")) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the store refuses access: the credentials are wrong or missing"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the store refuses access: the credentials are wrong or missing"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "the store could not be reached, or its answers broke off, 2 times",
        ),
    ],
    ids=["wrong secret", "unknown user", "none", "no server"],
)
@pytest.mark.parametrize("what", ["source", "prepared"])
def test_who_may_not_or_cannot_is_told_so_in_one_message(
    source, s3, s3_server, tmp_path, monkeypatch, capsys, change, words, what
):
    options = "?max_attempts=2&connect_timeout=1"
    (tmp_path / "a.csv").write_text(csv(LINES))
    settings = {
        "source": [f"data.source={source}{options}", f"data.prepared={tmp_path}"],
        "prepared": [f"data.source={tmp_path}/a.csv", f"data.prepared={s3}/prepared{options}"],
    }[what]
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    error = error_of(settings, tmp_path, monkeypatch, capsys)
    assert words in error
    assert s3_server.secret_key not in error


def error_of(settings, tmp_path, monkeypatch, capsys):
    """What `python -m raysrec.prepare` says when it fails."""
    (tmp_path / "model.yaml").write_text("model: {name: recgrela}")
    monkeypatch.setattr("sys.argv", ["prepare", "--config", str(tmp_path / "model.yaml"), *settings])
    stores._connect_s3.cache_clear()  # a new process has asked for no credentials yet
    with pytest.raises(SystemExit, match="2"):
        run_verb(verb.main, verb.parser())
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_missing_bucket_is_said_before_anything_is_read(s3, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.csv").write_text(csv(LINES))
    monkeypatch.setattr("raysrec.data.preparing.in_memory.read", None)
    settings = [f"data.source={tmp_path}/a.csv", "data.prepared=s3://no-such-bucket/prepared"]
    error = error_of(settings, tmp_path, monkeypatch, capsys)
    assert "there is no bucket no-such-bucket; make it, or fix its name or the endpoint" in error


def test_each_byte_leaves_the_store_once_in_an_epoch_of_two_workers(s3, proxy, monkeypatch):
    monkeypatch.setattr("raysrec.data.preparing.writing.ROW_GROUPS", 16)
    monkeypatch.setattr("raysrec.data.preparing.writing.LARGEST_ROW_GROUP", 30_000)
    synthetic = {"num_users": 20_000, "num_items": 3_000, "mean_length": 60}
    data = prepare(data_config("synthetic", f"{s3}/prepared", synthetic=synthetic))
    config = RunConfig.model_validate(
        {"model": {"name": "recgrela", "max_length": 50}, "data": {"num_streams": 4, "shuffle_interactions": 100_000}}
    )
    data = PreparedData.open(f"{data.directory}?max_attempts=3")  # no footer of which this process knows
    size = sum(shard.bytes for shard in data.manifest.shards)
    assert len(data.manifest.shards) > 1
    counted = []
    for epoch in range(2):
        proxy.clear()
        for worker in range(2):
            for _ in epoch_steps(data, config, read_directly, epoch=epoch, worker=worker, num_workers=2):
                pass
        counted.append((proxy.bytes_read("part-") / size, proxy.count("GET", "part-") / len(data.row_groups())))
    assert counted[0][0] <= 1.05
    assert counted[1][0] <= 1.0
    assert counted[1][1] <= 2


@pytest.fixture
def gs(monkeypatch):
    """The URI of an empty bucket in a server that speaks the protocol of Google's store."""
    program = shutil.which("fake-gcs-server")
    if program is None:
        pytest.skip("no fake-gcs-server on the PATH")
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    at = ["-host", "127.0.0.1", "-port", str(port), "-public-host", address, "-external-url", f"http://{address}"]
    server = subprocess.Popen([program, "-scheme", "http", "-backend", "memory", "-log-level", "error", *at])
    try:
        wait_for(port)
        body, kind = json.dumps({"name": "raysrec"}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{address}/storage/v1/b?project=test", data=body, headers=kind)
        urllib.request.urlopen(request).close()
        yield f"gs://raysrec?endpoint_override={address}&scheme=http&anonymous=true&request_timeout=1"
    finally:
        server.kill()
        server.wait()


def test_googles_store_is_used_like_any_other(gs, tmp_path):
    bucket = Place.of(gs)
    (bucket / "raw" / "a.csv").write(csv(LINES))
    source = str(bucket / "raw" / "*.csv")
    stored = prepare(data_config(source, bucket / "prepared"))
    here = prepare(data_config(source, tmp_path / "prepared"))
    assert contents(stored.directory) == contents(here.directory)
    assert PreparedData.open(stored.directory) == stored
    tables = zip(read_directly(stored.row_groups()), read_directly(here.row_groups()), strict=True)
    assert all(one.equals(other) for one, other in tables)
    with pytest.raises(PlaceError, match="there is no bucket no-such-bucket; make it, or fix its name"):
        prepare(data_config(gs.replace("raysrec", "no-such-bucket/*.csv", 1), tmp_path, format="csv"))
    (bucket / "prepared").delete()
    assert not stored.directory.exists()


def test_the_directory_of_a_run_in_a_store_is_one_like_any_other(s3, monkeypatch, capsys, tmp_path):
    config = validate({"model": {"name": "recgrela", "dim": 16}, "storage": {"root": f"{s3}/runs", "name": "one"}})
    run = RunDirectory(config.run_directory)
    with pytest.raises(RunError, match=r"is no run, it has no config\.yaml"):
        RunDirectory.open(run.path)
    run.start(config, "0123456789abcdef")
    assert RunDirectory.open(str(run.path)).config() == config
    assert run.other_settings(config) == ""
    with pytest.raises(RunError, match="was begun on data 0123456789abcdef, but the source now gives other"):
        run.start(config, "other")
    weights = build_model(config.model, 5).state_dict()
    run.save_model(config, 5, weights)
    before = run.weights_stamp()
    loaded = run.load_model().state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    run.save_model(config, 5, {name: value + 1 for name, value in weights.items()})
    assert run.weights_stamp() != before
    run.save_ranks(pa.table({"rank": [1, 2]}))
    with run.ranks_file.at_hand() as file:
        assert pq.read_table(file)["rank"].to_pylist() == [1, 2]
    trial = RunDirectory(f"{s3}/runs/heads/trials/trial-000")
    trial.start(config, "0123456789abcdef")
    Place.of(f"{s3}/runs/heads/sweep.yaml").write("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", f"{s3}/runs/*"])
    with pytest.raises(SystemExit, match="0"):
        run_verb(report.main, report.parser())
    states = re.findall(r"^(\S+) +(not \w+)", capsys.readouterr().out, re.MULTILINE)
    assert states == [("heads/trial-000", "not finished"), ("one", "not ranked")]
    assert (tmp_path / "report.html").is_file()
    run.save_record(record_of())
    assert run.record() == record_of()
    run.path.delete()
    assert not run.path.exists()


def test_a_log_in_a_store_goes_on_on_another_machine_and_waits_for_a_store_that_fails(s3, proxy):
    place = Place.of(f"{s3}/run?{HASTY}")
    step = {"kind": "step", "step": 1, "loss": 0.5}
    validation = {"kind": "validation", "step": 1, "validation/ndcg@10": 0.25}
    for epoch in (1, 2):
        with Recorder(place) as recorder:
            recorder.record({**step, "epoch": epoch})
            proxy.faults.append(Fault(4, method="POST", status=503))
            recorder.record({**validation, "epoch": epoch})
            proxy.faults.clear()
            recorder.record({"kind": "note", "text": "more"})
        events = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
        assert [event.get("epoch") for event in events] == [1, 1, None, 2, 2, None][: 3 * epoch]
        assert len([info for info in (place / "tensorboard").below() if info.is_file]) == epoch
