"""A Ray that starts here listens on this machine's own address only: who reached it could run code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOCALHOST = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}

# Two workers as training starts them, two actors, and a reading task; a worker writes down who listens where.
CODE = """
import json, os, sys
import psutil
import torch
import torch.distributed as dist

def listening(driver):
    found = []
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        try:
            name = " ".join(process.cmdline()[:1])
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN or (one.type == 2 and not one.raddr):
                    found.append([name, one.laddr.ip])
        except psutil.NoSuchProcess:
            continue
    return found

def work(settings):
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 0:
        open(settings["file"], "w").write(json.dumps(listening(settings["driver"])))
    dist.barrier()

from raysrec.config import ScaleConfig
from raysrec.cluster.runtime import ray_session
with ray_session(ScaleConfig(workers=2)):
    import ray, ray.data, ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    actor = ray.remote(num_cpus=0)(type("Actor", (), {"ping": lambda self: 1}))
    actors = [actor.remote() for _ in range(2)]
    assert ray.get([one.ping.remote() for one in actors]) == [1, 1]
    assert ray.data.range(10, override_num_blocks=2).map_batches(lambda batch: batch).count() == 10
    TorchTrainer(
        work,
        train_loop_config={"file": sys.argv[1], "driver": os.getpid()},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=os.path.dirname(sys.argv[1])),
    ).fit()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_everything_that_listens_listens_on_localhost(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "RAY_TMPDIR": f"/tmp/raysrec-{os.getpid()}", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "found.json"],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [(name, address) for name, address in json.loads((tmp_path / "found.json").read_text())]
    assert len({name for name, _ in found}) > 5  # head, raylet, agents, actors, workers
    # torch's store of keys, by which workers find each other, cannot be told to; it runs nothing that it is sent.
    assert [one for one in found if one[1] not in LOCALHOST] == [("ray::RayTrainWorker", "::")]
