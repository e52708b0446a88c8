"""GPU scheduling on a real standalone cluster of two workers, with a discovery script that invents GPUs."""

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


def conf(amount, **more):
    return {"spark.task.resource.gpu.amount": amount, "spark.executor.resource.gpu.amount": "4", **more}


@pytest.mark.parametrize(
    ("amount", "num_slots", "gpus_by_rank"),
    [("1", 3, [1, 1, 1]), ("2", 3, [2, 1]), ("4", 5, [3, 2])],
)
def test_exactly_num_slots_gpus_are_used(cluster, amount, num_slots, gpus_by_rank):
    result, out = cluster.drive("gpu_run.py", str(num_slots), "2", conf=conf(amount))
    assert result["tasks"] == len(gpus_by_rank), out
    for run in result["runs"]:
        visible = [each["visible"].split(",") for each in run]
        assert [len(each) for each in visible] == gpus_by_rank
        for each, chosen in zip(run, visible, strict=True):
            assert set(chosen) <= set(each["addresses"])
            assert len(each["addresses"]) == int(amount)
            assert each["asked"].get("options") is None
        # No executor uses the same GPU twice.
        used = [(each["executor"], gpu) for each, chosen in zip(run, visible, strict=True) for gpu in chosen]
        assert len(set(used)) == num_slots


def test_a_fraction_means_one_task_per_slot_and_ring_collectives(cluster):
    result, out = cluster.drive("gpu_run.py", "4", "1", conf=conf("0.5"))
    assert result["tasks"] == 4, out
    (run,) = result["runs"]
    for each in run:
        assert each["visible"] in ADDRESSES
        assert each["asked"]["options"] == "RING"
        assert each["asked"]["growth"] == [[each["visible"], True]]
    assert "several workers share a GPU" in out


def test_sparks_addresses_are_positions_in_the_executors_list(cluster):
    ids = ["GPU-aaa0", "GPU-aaa1", "GPU-aaa2", "GPU-aaa3"]
    more = {"spark.executorEnv.CUDA_VISIBLE_DEVICES": ",".join(ids)}
    result, _ = cluster.drive("gpu_run.py", "4", "2", conf=conf("2", **more))
    for run in result["runs"]:  # the second run must not use what the first one set
        for each in run:
            assert each["visible"].split(",") == [ids[int(address)] for address in each["addresses"]]
    more = {"spark.executorEnv.CUDA_VISIBLE_DEVICES": "0"}
    result, _ = cluster.drive("gpu_run.py", "4", "1", conf=conf("2", **more))
    assert result["error"] == "GpuConfigurationError"
    assert "CUDA_VISIBLE_DEVICES='0'" in result["message"]


def test_gpus_that_tensorflow_does_not_see_cause_a_warning(cluster):
    result, out = cluster.drive("gpu_run.py", "2", "1", "0", conf=conf("1"))
    assert len(result["runs"][0]) == 2
    assert "WARNING: Spark assigned the GPUs" in out
    assert "TensorFlow sees 0 of 1" in out


def test_a_cluster_without_gpu_scheduling_is_rejected(cluster):
    result, _ = cluster.drive("gpu_run.py", "2", "1", conf={})
    assert result["error"] == "GpuConfigurationError"
    assert "spark.task.resource.gpu.amount is not set" in result["message"]


def test_too_few_gpus_are_rejected(cluster):
    more = {"spark.scheduler.maxRegisteredResourcesWaitingTime": "15s"}
    result, _ = cluster.drive("gpu_run.py", "9", "1", conf=conf("1", **more))
    assert result["error"] == "InsufficientSlotsError"
    assert "needs 9 Spark tasks" in result["message"]
    assert "has 8 slots" in result["message"]
    assert "num_slots=8" in result["message"]


def test_a_resource_profile_of_tasks(cluster):
    """A profile replaces the settings for tasks, without dynamic allocation."""
    result, out = cluster.drive("gpu_run.py", "3", "1", "1", "2", conf=conf("1"))
    assert result["tasks"] == 2, out
    (run,) = result["runs"]
    assert [len(each["visible"].split(",")) for each in run] == [2, 1]
    assert [len(each["addresses"]) for each in run] == [2, 2]
    more = {"spark.scheduler.maxRegisteredResourcesWaitingTime": "15s"}
    result, out = cluster.drive("gpu_run.py", "9", "1", "1", "2", conf=conf("1", **more))
    assert result["error"] == "InsufficientSlotsError", out
    for words in ("needs 5 Spark tasks", "has 4 slots", "num_slots=8", "resource_profile with cpus=1, gpu=2 per task"):
        assert words in result["message"]
    result, out = cluster.drive("gpu_run.py", "2", "1", "1", "1", "executors", conf=conf("1"))
    assert result["error"] == "ClusterError", out
    assert "may only have task requirements" in result["message"]


def test_local_mode_uses_the_drivers_gpus(cluster):
    driver = {
        "spark.driver.resource.gpu.amount": "4",
        "spark.driver.resource.gpu.discoveryScript": str(cluster.folder / "discover.sh"),
    }
    result, out = cluster.drive("local_gpu_run.py", "3", conf=driver)
    assert result == {"visible": "4,5,6", "restored": True}, out
    result, _ = cluster.drive("local_gpu_run.py", "5", conf=driver)
    assert result["error"] == "GpuConfigurationError"
    assert "the driver has 4" in result["message"]
    assert result["restored"]
