import hashlib
import io
import os
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raysrec import prepare as verb
from raysrec.command_line import run_verb
from raysrec.config import DataConfig
from raysrec.data.sources import download as module
from raysrec.data.sources.download import download, fetch
from raysrec.data.sources.files import SourceError

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(BaseHTTPRequestHandler):
    """Serves one file; how, its server says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.statuses:
            return self.answer(server.statuses.pop(0), {"Content-Length": "0"})
        content, edition = server.content, {"ETag": server.edition} if server.edition else {}
        same = self.headers.get("If-Range", server.edition) == server.edition
        if not asked or not server.ranges or not same:
            return self.send(200, content, edition)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self.answer(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"})
        where = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self.send(206, content[start:], edition | where)

    def send(self, status, body, headers):
        self.answer(status, {"Content-Length": str(len(body))} | headers)
        dropped = self.server.drops.pop(0) if self.server.drops else len(body)
        self.wfile.write(body[:dropped])
        self.close_connection = True

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server of CONTENT that knows ranges; tests make it worse."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.content, found.edition, found.ranges = CONTENT, '"one"', True
        found.drops, found.statuses, found.asked = [], [], []
        found.url = f"http://127.0.0.1:{found.server_port}/a.csv"
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


def leave_part(target, content, edition=""):
    (target.parent / f"{target.name}.part").write_bytes(content)
    if edition:
        (target.parent / f"{target.name}.part.validator").write_text(edition)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path):
    fetch(server.url, tmp_path / "a.csv", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert os.listdir(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_dropped_connection_goes_on_where_it_broke(server, tmp_path):
    server.drops = [1000, 2000]
    fetch(server.url, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_what_an_earlier_attempt_left_is_not_fetched_again(server, tmp_path):
    leave_part(tmp_path / "a.csv", CONTENT[:5000], '"one"')
    fetch(server.url, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.asked == ["bytes=5000-"]
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_part_that_is_already_whole_only_gets_its_name(server, tmp_path):
    leave_part(tmp_path / "a.csv", CONTENT, '"one"')
    fetch(server.url, tmp_path / "a.csv", md5(CONTENT))
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("checksum", ["", md5(CONTENT)])
def test_a_server_that_ignores_ranges_starts_over(server, tmp_path, checksum):
    server.ranges = False
    server.drops = [1000]
    fetch(server.url, tmp_path / "a.csv", checksum)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * len(CONTENT) * 2])
def test_another_edition_is_never_put_behind_what_came_of_the_first(server, tmp_path, left):
    leave_part(tmp_path / "a.csv", left, '"older"')
    fetch(server.url, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


def test_without_an_edition_or_a_checksum_nothing_is_resumed(server, tmp_path):
    server.edition = ""
    leave_part(tmp_path / "a.csv", b"x" * 5000)
    fetch(server.url, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    leave_part(tmp_path / "a.csv", CONTENT + b"more")
    fetch(server.url, tmp_path / "a.csv", md5(CONTENT))
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(SourceError, match=f"came as {md5(CONTENT)}, but data.checksum is {md5(b'')}"):
        fetch(server.url, tmp_path / "a.csv", md5(b""))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_brings_nothing_new_is_given_up_and_the_part_kept(server, tmp_path, ranges):
    server.ranges = ranges
    server.drops = [1000] + [0 if ranges else 1000] * 9
    with pytest.raises(SourceError, match="broke off 5 times at 1,000 bytes; what came is kept"):
        fetch(server.url, tmp_path / "a.csv")
    assert sorted(os.listdir(tmp_path)) == ["a.csv.part", "a.csv.part.validator"]
    server.drops = []
    fetch(server.url, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_refusal_is_said(server, tmp_path):
    server.statuses = [503, 429]
    fetch(server.url, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(SourceError, match="the server answers 404 Not Found; look"):
        fetch(server.url, tmp_path / "b.csv")
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_server_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SourceError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/a.csv", tmp_path / "a.csv")
    assert os.listdir(tmp_path) == []


def test_two_do_not_fetch_the_same_at_once(server, tmp_path):
    with module._locked(tmp_path / "a.csv.part"), pytest.raises(SourceError, match="another process is fetching it"):
        fetch(server.url, tmp_path / "a.csv")


def archive(kind, members):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in members.items():
                opened.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as opened:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    return file.getvalue()


def config(server, source, kind, **settings):
    url = server.url.replace("a.csv", f"a.{kind}")
    return DataConfig.model_validate({"source": str(source), "url": url} | settings)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_unpacked_to_what_the_source_names(server, tmp_path, kind):
    server.content = archive(kind, {"x/log_1.csv": b"1", "x/log_2.csv": b"2", "x/users.csv": b"3", "../log": b"4"})
    source = tmp_path / "data" / "log_*.csv"
    assert [path.name for path in download(config(server, source, kind))] == ["log_1.csv", "log_2.csv"]
    assert sorted(os.listdir(tmp_path / "data")) == ["log_1.csv", "log_2.csv"]
    download(config(server, source, kind))
    assert len(server.asked) == 1  # it is there


def test_an_archive_that_was_not_unpacked_to_its_end_is_unpacked_again(server, tmp_path, monkeypatch):
    server.content = archive("zip", {"log_1.csv": b"1", "log_2.csv": b"2"})
    replace, calls = os.replace, []

    def killed_at_the_third(*paths):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        download(config(server, tmp_path / "log_*.csv", "zip"))
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "log_1.csv"]
    download(config(server, tmp_path / "log_*.csv", "zip"))
    assert sorted(os.listdir(tmp_path)) == ["log_1.csv", "log_2.csv"]
    assert len(server.asked) == 1


def test_a_broken_archive_is_said_and_leaves_nothing(server, tmp_path):
    whole = archive("zip", {"ratings.dat": CONTENT})
    for content in (b"<html>", whole[:1000] + b"x" * 50 + whole[1050:], whole[:-9]):
        server.content = content
        with pytest.raises(SourceError, match="is no whole archive"):
            download(config(server, tmp_path / "ratings.dat", "zip"))
        assert os.listdir(tmp_path) == []
    server.content = archive("tar.gz", {"ratings.dat": os.urandom(9999)})[:-500]
    with pytest.raises(SourceError, match="is no whole archive"):
        download(config(server, tmp_path / "ratings.dat", "tar.gz"))
    assert os.listdir(tmp_path) == []


def test_an_archive_without_the_source_is_said(server, tmp_path):
    server.content = archive("zip", {"x/movies.dat": b"1"})
    with pytest.raises(SourceError, match=r"holds no file named ratings\.dat"):
        download(config(server, tmp_path / "ratings.dat", "zip"))
    server.content = archive("zip", {"x/ratings.dat": b"1", "y/ratings.dat": b"2"})
    with pytest.raises(SourceError, match=r"holds ratings\.dat twice"):
        download(config(server, tmp_path / "b" / "ratings.dat", "zip"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"source": "a.csv"}, "data.url is not set"),
        ({"source": "s3://bucket/a.csv", "url": "http://x/a.csv"}, "onto this machine"),
        ({"source": ["a.csv", "b.csv"], "url": "http://x/a.csv"}, "one file or pattern"),
        ({"source": "*.csv", "url": "http://x/a.csv"}, "is a pattern, but data.url is one file"),
        ({"source": "a.csv", "url": "http://x/a.csv.gz"}, "is to end as http://x/a.csv.gz does"),
    ],
)
def test_what_cannot_be_fetched_is_said(settings, expected):
    with pytest.raises(SourceError, match=expected):
        download(DataConfig.model_validate(settings))


def test_the_command_fetches_and_prepares(server, tmp_path, monkeypatch, capsys):
    rows = "".join(f"u{n % 9},i{n % 7},{n}\n" for n in range(200))
    server.content = archive("zip", {"x/events.csv": f"user,item,time\n{rows}".encode()})
    settings = config(server, tmp_path / "data" / "events.csv", "zip", prepared=str(tmp_path / "prepared"))
    (tmp_path / "a.yaml").write_text(
        f"model: {{name: recgrela}}\ndata: {{source: {settings.source}, url: '{settings.url}'}}\n"
    )
    monkeypatch.chdir(tmp_path)
    for arguments, code, expected in [
        ([], 2, "events.csv: there is no such file; --download of raysrec.prepare fetches it"),
        (["--download"], 0, "users         9"),
    ]:
        monkeypatch.setattr(sys, "argv", ["prepare", "--config", "a.yaml", *arguments])
        with pytest.raises(SystemExit) as exit:
            run_verb(verb.main, verb.parser())
        assert exit.value.code == code
        assert expected in "".join(capsys.readouterr())
