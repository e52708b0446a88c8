"""GPU scheduling on a real standalone cluster of two workers, with a discovery script that invents GPUs."""

import json
import subprocess

import pyspark
import pytest

from clusters import StandaloneCluster

ADDRESSES = ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    script = folder / "discover.sh"
    listed = ",".join(f'\\"{address}\\"' for address in ADDRESSES)
    script.write_text(f'#!/bin/sh\necho "{{\\"name\\": \\"gpu\\", \\"addresses\\": [{listed}]}}"\n')
    script.chmod(0o755)
    made = StandaloneCluster(
        folder, {"spark.worker.resource.gpu.amount": 4, "spark.worker.resource.gpu.discoveryScript": script}
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def ask(cluster):
    """Send a request to one driver for all tests (see ``gpu_run.py``); return its result and what it printed."""
    driver = cluster.start_driver("gpu_run.py", stdin=subprocess.PIPE)

    def ask(**request):
        driver.stdin.write(json.dumps(request) + "\n")
        driver.stdin.flush()
        lines = []
        for line in driver.stdout:
            if line.startswith("RESULT "):
                return json.loads(line[7:]), "".join(lines)
            lines.append(line)
        raise AssertionError(f"the driver ended:\n{''.join(lines)}")

    yield ask
    driver.communicate(timeout=60)
    assert driver.returncode == 0


def conf(amount, **more):
    return {"spark.task.resource.gpu.amount": amount, "spark.executor.resource.gpu.amount": "4", **more}


# Runs wait this long for more executors before they are rejected.
ONE = conf("1", **{"spark.scheduler.maxRegisteredResourcesWaitingTime": "15s"})


@pytest.mark.parametrize(
    ("settings", "num_slots", "gpus_by_rank"),
    [(conf("2"), 3, [2, 1]), (conf("4"), 5, [3, 2]), (ONE, 3, [1, 1, 1])],
    ids=["2", "4", "1"],
)
def test_exactly_num_slots_gpus_are_used(ask, settings, num_slots, gpus_by_rank):
    result, out = ask(conf=settings, num_slots=num_slots, runs=2)
    assert result.get("tasks") == len(gpus_by_rank), (result, out)
    for run in result["runs"]:
        visible = [each["visible"].split(",") for each in run]
        assert [len(each) for each in visible] == gpus_by_rank
        for each, chosen in zip(run, visible, strict=True):
            assert set(chosen) <= set(each["addresses"])
            assert len(each["addresses"]) == int(settings["spark.task.resource.gpu.amount"])
            assert each["asked"].get("options") is None
        # No executor uses the same GPU twice.
        used = [(each["executor"], gpu) for each, chosen in zip(run, visible, strict=True) for gpu in chosen]
        assert len(set(used)) == num_slots


def test_gpus_that_tensorflow_does_not_see_cause_a_warning(ask):
    result, out = ask(conf=ONE, num_slots=2, sees=False)
    assert len(result["runs"][0]) == 2
    assert "WARNING: Spark assigned the GPUs" in out
    assert "TensorFlow sees 0 of 1" in out


def test_too_few_gpus_are_rejected(ask):
    result, _ = ask(conf=ONE, num_slots=9)
    assert result["error"] == "InsufficientSlotsError"
    assert "needs 9 Spark tasks" in result["message"]
    assert "has 8 slots" in result["message"]
    assert "num_slots=8" in result["message"]


def test_a_resource_profile_of_tasks(ask):
    """A profile replaces the settings for tasks, without dynamic allocation."""
    result, out = ask(conf=ONE, num_slots=3, gpus=2)
    if pyspark.__version__.startswith("3."):  # it has no profiles for DataFrames
        assert result["error"] == "ConfigurationError", out
        assert "resource_profile needs PySpark 4" in result["message"]
        return
    assert result.get("tasks") == 2, (result, out)
    (run,) = result["runs"]
    assert [len(each["visible"].split(",")) for each in run] == [2, 1]
    assert [len(each["addresses"]) for each in run] == [2, 2]
    result, out = ask(conf=ONE, num_slots=9, gpus=2)
    assert result["error"] == "InsufficientSlotsError", out
    for words in ("needs 5 Spark tasks", "has 4 slots", "num_slots=8", "resource_profile with cpus=1, gpu=2 per task"):
        assert words in result["message"]
    result, out = ask(conf=ONE, num_slots=2, gpus=1, executors=True)
    assert result["error"] == "ClusterError", out
    assert "may only have task requirements" in result["message"]


def test_a_fraction_means_one_task_per_slot_and_ring_collectives(ask):
    result, out = ask(conf=conf("0.5"), num_slots=4)
    assert result.get("tasks") == 4, (result, out)
    (run,) = result["runs"]
    for each in run:
        assert each["visible"] in ADDRESSES
        assert each["asked"]["options"] == "RING"
        assert each["asked"]["growth"] == [[each["visible"], True]]
    assert "several workers share a GPU" in out


def test_sparks_addresses_are_positions_in_the_executors_list(ask):
    ids = ["GPU-aaa0", "GPU-aaa1", "GPU-aaa2", "GPU-aaa3"]
    result, _ = ask(conf=conf("2", **{"spark.executorEnv.CUDA_VISIBLE_DEVICES": ",".join(ids)}), num_slots=4, runs=2)
    for run in result["runs"]:  # the second run must not use what the first one set
        for each in run:
            assert each["visible"].split(",") == [ids[int(address)] for address in each["addresses"]]
    result, _ = ask(conf=conf("2", **{"spark.executorEnv.CUDA_VISIBLE_DEVICES": "0"}), num_slots=4)
    assert result["error"] == "GpuConfigurationError"
    assert "CUDA_VISIBLE_DEVICES='0'" in result["message"]


def test_a_cluster_without_gpu_scheduling_is_rejected(ask):
    result, _ = ask(conf={}, num_slots=2)
    assert result["error"] == "GpuConfigurationError"
    assert "spark.task.resource.gpu.amount is not set" in result["message"]


def test_local_mode_uses_the_drivers_gpus(ask, cluster):
    settings = {
        "spark.driver.resource.gpu.amount": "4",
        "spark.driver.resource.gpu.discoveryScript": str(cluster.folder / "discover.sh"),
    }
    result, out = ask(conf=settings, num_slots=3, local=True)
    assert result == {"visible": "4,5,6"}, out
    result, _ = ask(conf=settings, num_slots=5, local=True)
    assert result["error"] == "GpuConfigurationError"
    assert "the driver has 4" in result["message"]
