"""What machines of a cluster answer, and what is said of it; test_resources.py asks a real one."""

import json
import os
import re

import pytest

import raysrec
from raysrec.cluster import nodes, runtime
from raysrec.cluster.nodes import check_nodes, refuse, refuse_fleeting, refuse_in_job_folder, refuse_other_versions
from raysrec.cluster.runtime import ClusterError
from raysrec.cluster.versions import look_around, versions_here
from raysrec.config.loading import validate


def answer(**other):
    return {"versions": versions_here() | other, "unseen": []}


def test_machines_that_are_alike_may_work():
    refuse({"10.0.0.1": answer(), "10.0.0.2": look_around(["/"])})
    refuse_other_versions(versions_here())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (
            {"10.0.0.1": answer(), "10.0.0.2": answer(torch="2.12.1", deepspeed="not installed")},
            "other versions on 10.0.0.2: torch 2.12.1 (here {torch}), deepspeed not installed (here {deepspeed}); ",
        ),
        (
            {f"10.0.0.{n}": answer(raysrec="code 0123456789ab") for n in range(1, 6)},
            "other versions on 10.0.0.1, 10.0.0.2, 10.0.0.3 and 2 more: raysrec code 0123456789ab (here ",
        ),
        (
            {"10.0.0.1": answer(), "10.0.0.2": {"failed": "No module named 'torch'"}},
            "raysrec does not run on 10.0.0.2: No module named 'torch'; install the same everywhere",
        ),
        (
            {"10.0.0.1": answer(), "10.0.0.2": look_around(["/", "/nowhere/prepared"])},
            "/nowhere/prepared is not there on 10.0.0.2; keep what is read and written (data.source, data.prepared, ",
        ),
    ],
)
def test_a_machine_that_cannot_do_its_part_is_named(answers, expected):
    with pytest.raises(ClusterError, match=re.escape(expected.format(**versions_here()))):
        refuse(answers)


def test_a_worker_on_a_machine_that_came_later_looks_itself():
    with pytest.raises(ClusterError, match=rf"other versions on {os.uname().nodename} than where .*: torch"):
        refuse_other_versions(versions_here() | {"torch": "1.0"})


def test_without_a_cluster_nobody_is_asked(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("raysrec.cluster.nodes._alive", lambda: pytest.fail("machines were looked for"))
    assert check_nodes([]) == set()


@pytest.fixture
def job(monkeypatch, tmp_path):
    """This process as a job with this environment, in the folder that was unpacked for it."""
    monkeypatch.chdir(tmp_path)

    def submitted(**environment):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": environment}))

    return submitted


def config(**given):
    return validate({"model": {"name": "sasrec"}, **given})


def test_a_job_keeps_nothing_in_its_own_folder(job, tmp_path):
    refuse_fleeting(config())
    job(env_vars={"A": "b"})
    refuse_fleeting(config())
    job(working_dir="gcs://a.zip")
    with pytest.raises(ClusterError, match=r"^storage\.root=runs: lies in the folder which Ray unpacked for this job"):
        refuse_fleeting(config())
    with pytest.raises(
        ClusterError, match=rf"^data\.prepared={tmp_path}/p: lies in .* data\.prepared=s3://bucket/folder"
    ):
        refuse_fleeting(config(storage={"root": "/shared/runs"}, data={"prepared": f"{tmp_path}/p"}))
    refuse_fleeting(config(storage={"root": "s3://bucket/runs"}, data={"prepared": "/shared/prepared"}))
    with pytest.raises(ClusterError, match="--output=recs: lies in the folder which Ray unpacked"):
        refuse_in_job_folder("--output", "recs")


def test_workers_get_this_code_unless_the_job_brought_it(job, monkeypatch, tmp_path):
    code = os.path.dirname(raysrec.__file__)
    assert runtime._environment_of_workers(local=True) == {}
    assert runtime._environment_of_workers(local=False)["py_modules"] == [code]
    # The folder of the job is another than the one raysrec comes from.
    job(working_dir="gcs://a.zip")
    assert runtime._environment_of_workers(local=False)["py_modules"] == [code]
    monkeypatch.chdir(os.path.dirname(code))
    assert "py_modules" not in runtime._environment_of_workers(local=False)
    monkeypatch.chdir(tmp_path)
    job(py_modules=["gcs://a.zip"])
    assert "py_modules" not in runtime._environment_of_workers(local=False)


def test_what_a_job_was_given_is_not_told_to_ray_twice(job, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    job(env_vars={"RAY_USAGE_STATS_ENABLED": "1"})
    variables = runtime._environment_of_workers(local=False)["env_vars"]
    assert "RAY_USAGE_STATS_ENABLED" not in variables
    assert variables["RAY_DATA_DISABLE_PROGRESS_BARS"] == "1"


def test_an_answer_that_is_an_error_is_told_by_its_last_line(monkeypatch):
    import ray

    def fail(_):
        raise ray.exceptions.RayTaskError(
            "look_around", "Traceback\nModuleNotFoundError: no torch\n", ImportError("a\nno torch")
        )

    monkeypatch.setattr(ray, "get", fail)
    assert nodes._answer(None)["failed"] == "no torch"


def test_a_machine_that_goes_while_it_is_asked_is_no_fault(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    a, b, c = (name * 56 for name in "abc")
    there = iter([{a: "10.0.0.1", b: "10.0.0.2"}, {a: "10.0.0.1"}])
    asked = []

    class Task:
        def options(self, scheduling_strategy):
            return type(
                "One", (), {"remote": lambda _, folders: asked.append(scheduling_strategy.node_id) or asked[-1]}
            )()

    monkeypatch.setattr(nodes, "_alive", lambda: next(there))
    monkeypatch.setattr(nodes, "_answer", lambda node: answer() if node == a else {"failed": "its node has died"})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Task())
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))
    assert check_nodes([]) == {a, b}
    assert sorted(asked) == [a, b]

    # Those that were asked are not asked again.
    there = iter([{a: "10.0.0.1", c: "10.0.0.3"}] * 2)
    with pytest.raises(ClusterError, match=r"raysrec does not run on 10\.0\.0\.3: its node has died"):
        check_nodes([], known={a, b})
