"""What the facts about a cluster mean."""

import json

import pytest

from spark_tensorflow_distributor.cli.demo import curve
from spark_tensorflow_distributor.cli.diagnosis import Diagnosis
from spark_tensorflow_distributor.cli.doctor_text import report_text
from spark_tensorflow_distributor.cli.findings import Finding, findings_of
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.specs import RunPlan

TENSORFLOW = {
    "version": "2.21.0",
    "keras": "3.15.1",
    "selected_keras": "keras",
    "seconds": 4.2,
    "gpus": [],
    "cuda": "",
}


def facts(**more):
    return {
        "python": "3.11.7",
        "executable": "/opt/venv/bin/python",
        "system": "Linux 6.1 x86_64",
        "packages": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        "can_encrypt": False,
        "cores": 4,
        "memory": 8 << 30,
        "disk": {"path": "/tmp", "free": 50 << 30},
        **more,
    }


def task(rank, host="a", **more):
    found = {"rank": rank, "host": host, "driver": True, "resources": {}, "cpus": 1, "listener": "", "unreachable": []}
    return {**facts(), **found, "time": 100.0, "tensorflow": TENSORFLOW, **more}


def texts(tasks, status, config=None, run_plan=None, driver=None):
    config = config or RunnerConfig(num_slots=len(tasks), use_gpu=False)
    found = findings_of(config, run_plan or RunPlan(len(tasks)), tasks, driver or facts(), 101.0)
    return [f"{finding.text} {finding.change}" for finding in found if finding.status == status]


def test_a_sound_cluster_has_nothing_to_change():
    tasks = [task(0), task(1, "b")]
    assert texts(tasks, "problem") == texts(tasks, "warning") == []
    assert len(texts(tasks, "ok")) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tensorflow": {"error": "ModuleNotFoundError: No module named 'tensorflow'"}}, "No module named"),
        ({"tensorflow": {**TENSORFLOW, "version": "2.20.0"}}, "different versions"),
        ({"tensorflow": {**TENSORFLOW, "keras": "3.9.2"}}, "keras>=3.10"),
        ({"listener": "ClusterError: All ports are taken"}, "cannot listen"),
        ({"unreachable": ["10.0.0.1:4000"]}, "workerPorts"),
    ],
)
def test_problems(more, words):
    (text,) = texts([task(0), task(1, "b", **more)], "problem")
    assert words in text
    assert "b" in text


def test_an_old_tensorflow():
    (text,) = texts([task(0, tensorflow={**TENSORFLOW, "version": "2.15.1"})], "problem")
    assert "2.16 or newer" in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"driver": False}, "driverPort"),
        ({"memory": 500 << 20}, "memoryOverhead"),
        ({"disk": {"path": "/mnt", "free": 100 << 20}}, "spark.local.dir"),
        ({"system": "Darwin 24 arm64"}, "slower than on Linux"),
        ({"time": 30.0}, "clock of b"),
        ({"resources": {"gpu": ["0"]}}, "without --cpu"),
    ],
)
def test_warnings(more, words):
    (text,) = texts([task(0), task(1, "b", **more)], "warning")
    assert words in text


def test_unknown_memory_is_no_warning():
    assert texts([task(0, memory=None)], "warning") == []


def test_the_drivers_tensorflow():
    (text,) = texts([task(0)], "warning", driver=facts(packages={}))
    assert "cannot load a model" in text
    (text,) = texts([task(0)], "warning", driver=facts(packages={"tensorflow": "2.19.0"}))
    assert "may not load here" in text


def test_encryption_needs_a_package_on_the_executors():
    tasks = [task(0, can_encrypt=True), task(1, "b")]
    (text,) = texts(tasks, "problem", run_plan=RunPlan(2, protection="privacy"))
    assert "b lacks the package cryptography" in text


def test_gpus():
    config, run_plan = RunnerConfig(num_slots=3), RunPlan(2, (2, 1))
    two, one = {"gpu": ["0", "1"]}, {"gpu": ["0"]}
    seen = {**TENSORFLOW, "gpus": ["GPU:0", "GPU:1"]}
    tasks = [task(0, resources=two, tensorflow=seen), task(1, resources=one)]
    del tasks[1]["tensorflow"]  # the same host
    assert texts(tasks, "problem", config, run_plan) == []
    assert any("3 GPUs" in text for text in texts(tasks, "ok", config, run_plan))
    blind = [task(0, resources=two), tasks[1]]
    (text,) = texts(blind, "problem", config, run_plan)
    assert "sees 0 of the 2 GPUs" in text
    assert "built without CUDA" in text
    (text,) = texts([task(0, resources=one, tensorflow=seen), tasks[1]], "problem", config, run_plan)
    assert "not 2" in text


def test_tf_keras_has_to_be_there():
    tensorflow = {**TENSORFLOW, "keras": "3.5.0", "selected_keras": "tf_keras"}
    (text,) = texts([task(0, tensorflow=tensorflow)], "problem")
    assert "no tf_keras" in text
    packages = {**facts()["packages"], "tf_keras": "2.21.0"}
    assert texts([task(0, tensorflow=tensorflow, packages=packages)], "problem") == []


def test_the_report_says_what_a_bug_report_needs():
    driver = {**facts(), "spark": "4.3.0", "java": "17.0.1", "kind": "classic"}
    settings = {"spark.master": "yarn", "spark.some.password": "hunter2", "spark.some.apiKey": "hunter2"}
    found = Diagnosis("2.0", "num_slots=2 on CPUs", driver, settings, 2, 2, [task(0), task(1, "b")])
    text = report_text(found)
    for words in (
        "spark_tensorflow_distributor 2.0",
        "4.3.0 (classic), Java 17.0.1",
        "spark.master=yarn",
        "b, rank(s) 1",
    ):
        assert words in text
    assert "hunter2" not in text + json.dumps(found.to_dict())
    assert text.endswith("A run with num_slots=2 on CPUs would start.")
    found.findings.append(Finding("problem", "No.\n" + "long " * 40, "Say yes."))
    text = report_text(found)
    assert "-> Say yes." in text
    assert max(map(len, text.splitlines())) <= 130
    assert text.endswith("would not start: 1 problem(s), see above.")
    assert found.to_dict()["would_start"] is False


def test_the_curve_of_the_demo():
    history = [{"logs": {"loss": value}} for value in (1.0, 0.5, 0.0)]
    assert curve(history).split() == ["loss", "█▅▁", "1.000", "->", "0.000"]
    assert curve([]) == ""
