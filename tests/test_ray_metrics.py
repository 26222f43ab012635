"""Numbers of a training as Prometheus collects them, and the Grafana dashboard that asks for them."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from raysrec.config.loading import validate
from raysrec.tracking import ray_metrics

GRAFANA = Path(__file__).parent.parent / "cluster" / "grafana"
DASHBOARD = json.loads((GRAFANA / "raysrec.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

WAIT_S = 90
"""Seconds in which every number must have come: Ray reports every few seconds, and so does Prometheus ask."""


def queries():
    """Every query of the dashboard, and those that fill its lists, with all runs chosen."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    lists = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    found += [query.removeprefix("label_values(").partition(",")[0] for query in lists]
    return [query.replace("$run", ".*").replace("$trial", ".*").replace("$metric", ".*") for query in found]


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def prometheus(folder, target):
    """A real Prometheus that asks this address every few seconds; its own address."""
    port = free_port()
    jobs = [{"job_name": "ray", "static_configs": [{"targets": [target]}]}]
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "3s"}, "scrape_configs": jobs})
    )
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def answer(server, query):
    """Each series of the last quarter of an hour, as Grafana asks for them: labels, and values oldest first."""
    asked = {"query": query, "start": time.time() - 900, "end": time.time(), "step": 1}
    with urllib.request.urlopen(f"{server}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=30) as said:
        series = json.load(said)["data"]["result"]
    return [(one["metric"], [float(value) for _, value in one["values"]]) for one in series]


def test_every_number_has_a_place_on_the_dashboard():
    asked = " ".join(queries())
    numbers = (*ray_metrics.STEP.values(), *ray_metrics.CHECKPOINT.values(), ray_metrics.SCORE, ray_metrics.RESTARTS)
    names = {name for name, _ in numbers}
    shown = {name for name in names if f"ray_{name}{{" in asked}
    assert names - shown == {"raysrec_epoch", "raysrec_learning_rate"}


def test_panels_do_not_lie_on_each_other_and_take_the_chosen_source():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_what_grafana_and_prometheus_are_started_with_reads():
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "raysrec.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    (job,) = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here; tools/check installs it from Debian"
)
def test_prometheus_has_data_for_every_query_of_the_dashboard(tmp_path):
    from raysrec.cluster.runtime import ray_session
    from raysrec.train import train

    config = validate(
        {
            "data": {
                "synthetic": {"num_users": 203, "num_items": 40, "mean_length": 12},
                "prepared": str(tmp_path / "prepared"),
            },
            "model": {"name": "recgrela", "dim": 16, "num_blocks": 1, "max_length": 20},
            "train": {"epochs": 2, "batch_targets": 128, "learning_rate": 0.01},
            "engine": {"name": "torch"},
            "scale": {"threads_per_worker": 1},
            "storage": {"root": str(tmp_path / "runs"), "name": "watched"},
        }
    )
    with ray_session(config.scale):
        import ray

        (node,) = ray.nodes()
        with prometheus(tmp_path, f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}") as server:
            run = train(config)
            events = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
            expected = last_scores(events)
            ends = time.monotonic() + WAIT_S
            while time.monotonic() < ends:
                missing = [query for query in queries() if not answer(server, query)]
                found = answer(server, "ray_raysrec_validation_score")
                scores = {labels["metric"]: values[-1] for labels, values in found}
                if not missing and scores == expected:
                    break
                time.sleep(2)
            assert missing == []
            assert scores == expected
            ((labels, losses),) = answer(server, "ray_raysrec_loss")
            assert labels["run"] == "watched"
            assert "trial" not in labels  # to Prometheus a label without a value is none
            assert set(losses) <= {event["loss"] for event in events if event["kind"] == "step"}


def last_scores(events):
    last = [event for event in events if event["kind"] == "validation"][-1]
    return {name.removeprefix("validation/"): last[name] for name in last if name.startswith("validation/")}
