import pytest

from spark_tensorflow_distributor import GpuConfigurationError
from spark_tensorflow_distributor.runtime.devices import deal_gpus, task_addresses, threads_for, visible_devices


@pytest.mark.parametrize(
    ("num_slots", "num_tasks", "dealt"), [(8, 8, (1,) * 8), (8, 4, (2,) * 4), (7, 4, (2, 2, 2, 1)), (5, 2, (3, 2))]
)
def test_gpus_total_num_slots_and_the_first_ranks_use_one_more(num_slots, num_tasks, dealt):
    assert deal_gpus(num_slots, num_tasks) == dealt
    assert sum(dealt) == num_slots


def test_addresses_are_used_unchanged():
    assert visible_devices(["3", "5"], 2, None) == ("3", "5")
    assert visible_devices(["3", "5"], 1, None) == ("3",)
    uuids = ["GPU-5ebe9f43-ac33-420d-4d5b", "MIG-GPU-8932f937-d72c-4106-c12f/1/0"]
    assert visible_devices(uuids, 2, None) == tuple(uuids)


def test_indices_are_positions_in_the_executors_list():
    assert visible_devices(["0", "2"], 2, "GPU-a, GPU-b,GPU-c") == ("GPU-a", "GPU-c")
    assert visible_devices(["1"], 1, "4,7") == ("7",)
    assert visible_devices(["GPU-b"], 1, "GPU-a,GPU-b") == ("GPU-b",)


@pytest.mark.parametrize("address", ["01", "gpu0", "", "-1", "0 ", "1.0"])
def test_a_malformed_address_is_rejected(address):
    with pytest.raises(GpuConfigurationError, match="discoveryScript"):
        visible_devices([address], 1, None)


@pytest.mark.parametrize(("addresses", "visible"), [(["2"], "4,7"), (["0"], ""), (["GPU-x"], "GPU-a,GPU-b")])
def test_an_address_outside_the_executors_list_is_rejected(addresses, visible):
    with pytest.raises(GpuConfigurationError, match="CUDA_VISIBLE_DEVICES"):
        visible_devices(addresses, 1, visible)


def test_too_few_gpus():
    with pytest.raises(GpuConfigurationError, match="should use 2 GPUs, but Spark assigned it 1"):
        visible_devices(["0"], 2, None)


def test_a_resource_with_another_name():
    assert task_addresses({"gpu": ["0"]}, "gpu") == ("0",)
    with pytest.raises(GpuConfigurationError, match=r"no resource named 'gpu' .*fpga.*gpu_resource_name"):
        task_addresses({"fpga": ["0"]}, "gpu")


@pytest.mark.parametrize(
    ("cores", "local", "cpus", "threads"), [(16, 4, 1, 4), (2, 4, 1, 1), (16, 1, 2, 16), (4, 4, 2, 2)]
)
def test_threads_are_a_share_of_the_hosts_cores(cores, local, cpus, threads):
    assert threads_for(cores, local, cpus) == threads
