"""From the runner's arguments and the cluster's settings to a plan."""

from dataclasses import replace

import pytest

from spark_tensorflow_distributor import ClusterError, EncryptionUnsupportedError, GpuConfigurationError
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.driver.plan import (
    ClusterFacts,
    check_slots,
    make_plan,
    max_row_bytes,
    num_tasks_for,
)
from spark_tensorflow_distributor.runtime.spark_settings import COLLECTIVES, IGNORE_SSL, PROTECTION

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


@pytest.mark.parametrize("key", ["spark.ssl.enabled", "spark.network.crypto.enabled"])
def test_required_encryption_is_provided_where_possible(key):
    facts = ClusterFacts({key: "true", AMOUNT: "1"}, can_encrypt=True)
    assert (make_plan(cpu(), facts).protection, make_plan(cpu(), facts).warnings) == ("privacy", ())
    with pytest.raises(EncryptionUnsupportedError, match=r"pip install .*\[encryption\]"):
        make_plan(cpu(), ClusterFacts({key: "true"}))
    for config in (RunnerConfig(2), cpu(use_custom_strategy=True)):
        with pytest.raises(EncryptionUnsupportedError, match="TensorFlow's own runtime"):
            make_plan(config, facts)
    with pytest.raises(EncryptionUnsupportedError, match="TensorFlow's own runtime"):
        make_plan(cpu(), replace(facts, conf={**facts.conf, COLLECTIVES: "tensorflow"}))
    ignoring = replace(facts, conf={**facts.conf, IGNORE_SSL: "true"})
    for config in (RunnerConfig(2), cpu()):  # the executors may lack the package
        plan = make_plan(config, ignoring)
        assert (plan.protection, "The run starts anyway" in plan.warnings[0]) == ("light", True)
    both = replace(ignoring, conf={**ignoring.conf, PROTECTION: "privacy"})
    assert (make_plan(cpu(), both).protection, make_plan(cpu(), both).warnings) == ("privacy", ())


def test_files_are_not_encrypted():
    facts = ClusterFacts({"spark.io.encryption.enabled": "true"}, can_encrypt=True)
    with pytest.raises(EncryptionUnsupportedError, match="temporary files"):
        make_plan(cpu(), facts)


def test_protection_can_be_chosen():
    def chosen(value, **more):
        return make_plan(cpu(), ClusterFacts({PROTECTION: value}, **more)).protection

    assert make_plan(cpu(), ClusterFacts({})).protection == "light"
    assert [chosen("auto"), chosen("Integrity"), chosen("privacy", can_encrypt=True)] == [
        "light",
        "integrity",
        "privacy",
    ]
    with pytest.raises(EncryptionUnsupportedError, match=f"{PROTECTION}=privacy.*pip install"):
        chosen("privacy")


def test_dynamic_allocation_is_rejected():
    facts = {"spark.dynamicAllocation.enabled": "true", "spark.master": "yarn"}
    with pytest.raises(ClusterError, match=r"SPARK-24942.*spark\.dynamicAllocation\.enabled=false"):
        make_plan(cpu(), ClusterFacts(facts))
    make_plan(cpu(), ClusterFacts({**facts, "spark.master": "local[2]"}))


def test_too_few_slots_says_how_many_and_why():
    conf = {"spark.master": "spark://h:7077", "spark.task.cpus": "2", "spark.executor.cores": "4"}
    error = check_slots(cpu(8), ClusterFacts(conf, slots=4, executors=2), 8)
    for words in ("needs 8 Spark tasks", "4 slots on 2 executors", "spark.task.cpus=2", "num_slots=4"):
        assert words in str(error)
    assert check_slots(cpu(8), ClusterFacts(conf, slots=8), 8) is None
    assert check_slots(cpu(8), ClusterFacts(conf), 8) is None
    assert "local[8]" in str(check_slots(cpu(8), ClusterFacts({"spark.master": "local[2]"}, slots=2), 8))


def test_results_in_rows_take_an_eighth_of_the_heap():
    assert max_row_bytes(1 << 30, 1 << 30) == 1 << 27
    assert max_row_bytes(1 << 20, 1 << 30) == 1 << 20
    assert max_row_bytes(0, None) == 1 << 27


@pytest.mark.parametrize(
    ("value", "config", "uses_sockets"),
    [
        (None, cpu(), True),
        ("auto", cpu(use_custom_strategy=True), False),
        ("auto", RunnerConfig(2), False),
        ("tensorflow", cpu(), False),
        ("sockets", RunnerConfig(2), True),
        (" Sockets ", cpu(), True),
    ],
)
def test_what_carries_collectives(value, config, uses_sockets):
    conf = {AMOUNT: "1"} if value is None else {AMOUNT: "1", COLLECTIVES: value}
    assert make_plan(config, ClusterFacts(conf)).uses_sockets == uses_sockets


@pytest.mark.parametrize(
    ("value", "amount", "config", "text"),
    [
        ("sockets", "1", cpu(use_custom_strategy=True), "does not work with use_custom_strategy=True"),
        ("sockets", "2", RunnerConfig(4), "does not work with 2 GPUs per task"),
        ("tensorflow", "1", cpu(gradient_compression="float16"), "gradient_compression='float16' works only"),
        ("auto", "1", RunnerConfig(2, gradient_compression="bfloat16"), "gradient_compression='bfloat16' works only"),
    ],
)
def test_collectives_that_are_not_possible(value, amount, config, text):
    with pytest.raises(ClusterError, match=text):
        make_plan(config, ClusterFacts({AMOUNT: amount, COLLECTIVES: value}))
