"""A real S3 server for tests: Ceph's gateway over a store that lives in memory, started and stopped within seconds.

`apt-get install --no-install-recommends radosgw ceph-mon ceph-osd` brings it. All listen on this machine only, are
children of the process that starts them, and die with it.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool", "setpriv")
BUCKET = "raysrec"
START_S = 90

CONFIG = """
[global]
fsid = {cluster}
mon_host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket =
crash_dir = {folder}
keyring = {folder}/keyring
# Daemons of one machine and one test trust each other; then the default of encrypted messages has no key to use.
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_client_mode = crc
ms_service_mode = crc
ms_cluster_mode = crc
ms_mon_client_mode = crc
ms_mon_service_mode = crc
ms_mon_cluster_mode = crc
# One copy of everything on one disk, which is memory.
mon_allow_pool_size_one = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
mon_max_pg_per_osd = 1000
# A cluster of many would wait for others to agree.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
[mon.a]
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[osd.0]
osd_data = {folder}/osd
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_run_sync_thread = false
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
"""


@dataclass(frozen=True)
class S3Server:
    """A server with one user and one bucket."""

    port: int
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            # Nothing of this machine's owner, and no question to a cloud's metadata service.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def missing_programs() -> str:
    """The programs that are not installed, in words; empty if all are."""
    return ", ".join(name for name in PROGRAMS if shutil.which(name, path=_PATH) is None)


@contextmanager
def running_s3_server(folder: Path) -> Iterator[S3Server]:
    """A server that keeps its files in this folder and is gone after the block."""
    port, mon_v2, mon_v1 = free_ports(3)
    (folder / "keyring").touch()
    (folder / "osd").mkdir()
    names = {"cluster": uuid.uuid4(), "folder": folder, "port": port, "mon_v2": mon_v2, "mon_v1": mon_v1}
    (folder / "ceph.conf").write_text(CONFIG.format(**names))
    server = S3Server(port, secrets.token_hex(10).upper(), secrets.token_hex(20))

    def run(*command: str) -> None:
        done = subprocess.run([command[0], "-c", "ceph.conf", *command[1:]], **_SETTINGS, cwd=folder, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")

    with ExitStack() as daemons:

        def start(*command: str) -> None:
            # -f keeps it in the foreground, a child; setpriv lets it die with this process, however that ends.
            command = ("setpriv", "--pdeathsig", "KILL", command[0], "-f", "-c", "ceph.conf", *command[1:])
            process = subprocess.Popen(command, **_SETTINGS | {"stderr": subprocess.DEVNULL}, cwd=folder)
            daemons.callback(process.wait)
            daemons.callback(process.kill)

        address = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
        run("monmaptool", "--create", "--fsid", str(names["cluster"]), "--addv", "a", address, "monmap")
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap")
        start("ceph-mon", "-i", "a")
        disk = str(uuid.uuid4())
        run("ceph", "osd", "new", disk)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw")
        keys = ("--access-key", server.access_key, "--secret-key", server.secret_key)
        run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test", *keys)
        wait_for(port)
        client = fs.S3FileSystem(
            access_key=server.access_key,
            secret_key=server.secret_key,
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        client.create_dir(BUCKET)
        yield server


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, outside the range that Ray's workers take."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(port: int) -> None:
    """Return when somebody listens on this port of this machine."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_SETTINGS = {"env": {**os.environ, "PATH": _PATH}, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def main() -> int:
    """Run the command that follows with a new, empty server to talk to: `python tests/s3_server.py bash`."""
    with tempfile.TemporaryDirectory() as folder, running_s3_server(Path(folder)) as server:
        print(f"S3 server at port {server.port}, bucket s3://{BUCKET}, until the command ends", file=sys.stderr)
        return subprocess.run(sys.argv[1:], env={**os.environ, **server.environment}).returncode


if __name__ == "__main__":
    sys.exit(main())
