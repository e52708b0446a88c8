"""From the runner's arguments and the cluster's settings to a plan."""

import pytest

from spark_tensorflow_distributor import ClusterError, EncryptionUnsupportedError, GpuConfigurationError
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.driver.plan import (
    IGNORE_SSL,
    ClusterFacts,
    check_slots,
    make_plan,
    max_row_bytes,
    num_tasks_for,
    parse_bytes,
    ports,
)

AMOUNT = "spark.task.resource.gpu.amount"


def cpu(num_slots=2, **more):
    return RunnerConfig(num_slots, use_gpu=False, **more)


@pytest.mark.parametrize(("amount", "tasks"), [("1", 5), ("2", 3), ("4", 2), ("8", 1), ("0.5", 5), ("0.25", 5)])
def test_tasks_for_gpus(amount, tasks):
    assert num_tasks_for(RunnerConfig(5), ClusterFacts({AMOUNT: amount})) == tasks


@pytest.mark.parametrize("amount", ["0", "-1", "1.5", "many", "nan"])
def test_an_invalid_amount_of_gpus(amount):
    with pytest.raises(GpuConfigurationError, match=AMOUNT):
        num_tasks_for(RunnerConfig(5), ClusterFacts({AMOUNT: amount}))


def test_no_gpu_scheduling():
    with pytest.raises(GpuConfigurationError, match=r"spark\.task\.resource\.fpga\.amount is not set"):
        num_tasks_for(RunnerConfig(2, gpu_resource_name="fpga"), ClusterFacts({AMOUNT: "1"}))
    assert num_tasks_for(cpu(), ClusterFacts({})) == 2


def test_a_resource_profile_takes_precedence_over_the_setting():
    assert num_tasks_for(RunnerConfig(4), ClusterFacts({AMOUNT: "1"}, task_resource_amount=2, has_profile=True)) == 2
    with pytest.raises(GpuConfigurationError, match="resource_profile"):
        num_tasks_for(RunnerConfig(4), ClusterFacts({AMOUNT: "1"}, has_profile=True))


def test_a_fractional_amount_means_shared_gpus():
    plan = make_plan(RunnerConfig(4), ClusterFacts({AMOUNT: "0.5"}))
    assert plan.gpu_is_shared
    assert plan.gpus_by_rank == (1, 1, 1, 1)


@pytest.mark.parametrize("key", ["spark.ssl.enabled", "spark.network.crypto.enabled", "spark.io.encryption.enabled"])
def test_encryption_is_rejected_unless_ignored(key):
    with pytest.raises(EncryptionUnsupportedError, match=f"{key}=true.*{IGNORE_SSL}"):
        make_plan(cpu(), ClusterFacts({key: "TRUE"}))
    plan = make_plan(cpu(), ClusterFacts({key: "true", IGNORE_SSL: "True"}))
    assert key in plan.warnings[0]
    with pytest.raises(ClusterError, match="must be true or false"):
        make_plan(cpu(), ClusterFacts({key: "yes"}))


def test_dynamic_allocation_is_rejected():
    facts = {"spark.dynamicAllocation.enabled": "true", "spark.master": "yarn"}
    with pytest.raises(ClusterError, match=r"SPARK-24942.*spark\.dynamicAllocation\.enabled=false"):
        make_plan(cpu(), ClusterFacts(facts))
    make_plan(cpu(), ClusterFacts({**facts, "spark.master": "local[2]"}))


def test_too_few_slots_says_how_many_and_why():
    conf = {"spark.master": "spark://h:7077", "spark.task.cpus": "2", "spark.executor.cores": "4"}
    error = check_slots(cpu(8), ClusterFacts(conf, slots=4, workers=2), 8)
    for words in ("needs 8 Spark tasks", "4 slots on 2 executors", "spark.task.cpus=2", "num_slots=4"):
        assert words in str(error)
    assert check_slots(cpu(8), ClusterFacts(conf, slots=8), 8) is None
    assert check_slots(cpu(8), ClusterFacts(conf), 8) is None
    assert "local[8]" in str(check_slots(cpu(8), ClusterFacts({"spark.master": "local[2]"}, slots=2), 8))


@pytest.mark.parametrize(("text", "size"), [("1g", 1 << 30), ("512m", 1 << 29), ("0", 0), ("64KB", 1 << 16), ("7", 7)])
def test_sizes(text, size):
    assert parse_bytes(text, "key") == size


def test_an_invalid_size():
    with pytest.raises(ClusterError, match="key is '1x'"):
        parse_bytes("1x", "key")


def test_results_in_rows_take_an_eighth_of_the_heap():
    assert max_row_bytes(1 << 30, 1 << 30) == 1 << 27
    assert max_row_bytes(1 << 20, 1 << 30) == 1 << 20
    assert max_row_bytes(0, None) == 1 << 27


def test_a_range_of_ports():
    assert ports("20000-20099", "key") == (20000, 20100)
    assert ports("", "key") == ()
    for wrong in ("20000", "5-4", "0-10", "1-70000", "a-b"):
        with pytest.raises(ClusterError, match="key is"):
            ports(wrong, "key")
