"""A proxy in front of a real S3 server that counts what passes and, when told so, fails as networks and servers do."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PIECE = 1 << 14


@dataclass
class Fault:
    """What happens to the next `times` requests of a kind."""

    times: float
    """How many; `math.inf` is all."""
    method: str = "GET"
    key: str = ""
    """Part of the path."""
    status: int = 0
    """The answer instead of the server's."""
    drop_after: int | None = None
    """Bytes of the body after which the connection is cut."""
    gone: bool = False
    """Is the connection cut when the server has done what was asked, before any answer?"""
    delay_s: float = 0.0
    """Seconds before the answer begins."""
    stall_after: int | None = None
    """Bytes of the body after which nothing more comes, over a connection that stays open."""


@dataclass(frozen=True)
class Request:
    """One request that was answered, well or badly."""

    method: str
    key: str
    status: int
    sent: int
    """Bytes of the answer's body."""


@dataclass
class Proxy:
    """Counts requests and injects faults."""

    upstream: int
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _answering: int = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While the block runs, a request is being answered."""
        with self._lock:
            self._answering += 1
        try:
            yield
        finally:
            with self._lock:
                self._answering -= 1
                self._lock.notify_all()

    def clear(self) -> None:
        """Forget the requests so far."""
        self._settle()
        self.requests.clear()

    def _settle(self) -> None:
        """A client may have all of an answer before it is counted."""
        with self._lock:
            self._lock.wait_for(lambda: not self._answering, timeout=10)

    def bytes_read(self, part: str = "") -> int:
        """Bytes of all GET answers for keys that contain this."""
        self._settle()
        return sum(request.sent for request in self.requests if request.method == "GET" and part in request.key)

    def count(self, method: str, part: str = "") -> int:
        """Requests of this method for keys that contain this."""
        self._settle()
        return sum(request.method == method and part in request.key for request in self.requests)

    def take_fault(self, method: str, key: str) -> Fault | None:
        """The fault that is to befall this request, if any."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.key in key:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def running_proxy(upstream: int) -> Iterator[Proxy]:
    """A proxy in front of the server at this port."""
    proxy = Proxy(upstream)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    server.block_on_close = False
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        with self.proxy.answering():
            self._answer_and_count()

    def _answer_and_count(self) -> None:
        key = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.take_fault(self.command, key) or Fault(0)
        self.proxy.stopped.wait(fault.delay_s)
        status, sent = fault.status, 0
        try:
            if fault.status:
                self.send_response(fault.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                status, headers, content = self._forward(body)
                if fault.gone:
                    self.close_connection = True
                    return
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                sent = self._send(content, fault)
        except OSError:
            self.close_connection = True  # the client has given up
        finally:
            self.proxy.requests.append(Request(self.command, key, status, sent))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    server.putheader(name, value)
            server.endheaders(body or None)
            answer = server.getresponse()
            content = answer.read()
            headers = [
                pair for pair in answer.getheaders() if pair[0].lower() not in ("connection", "transfer-encoding")
            ]
            if not any(name.lower() == "content-length" for name, _ in headers) and answer.status not in (204, 304):
                headers.append(("Content-Length", str(len(content))))
            return answer.status, headers, content
        finally:
            server.close()

    def _send(self, content: bytes, fault: Fault) -> int:
        """Send the body as far as the fault lets it; the number of bytes sent."""
        stop = fault.drop_after if fault.drop_after is not None else fault.stall_after
        sent = 0
        for start in range(0, len(content) if stop is None else min(stop, len(content)), PIECE):
            piece = content[start : min(start + PIECE, len(content) if stop is None else stop)]
            self.wfile.write(piece)
            sent += len(piece)
        if stop is not None and sent < len(content):
            self.wfile.flush()
            if fault.stall_after is not None:
                self.proxy.stopped.wait()
            self.close_connection = True
        return sent


__all__ = ["Fault", "Proxy", "Request", "running_proxy"]
