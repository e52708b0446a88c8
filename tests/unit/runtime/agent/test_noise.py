"""Lines of TensorFlow that say nothing to the user."""

import pytest

from spark_tensorflow_distributor.runtime.agent.noise import is_noise

ALWAYS = [
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    b"I0000 00:00:1732700000.123456   12345 port.cc:153] oneDNN custom operations are on.",
    b"2026-11-27 15:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
    b"2026-11-27 15:00:00.1: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary is optimized",
    b"2026-11-27 15:00:00.1: W tensorflow/core/kernels/data/generator_dataset_op.cc:108] Error occurred when finalizing"
    b" GeneratorDataset iterator: CANCELLED: Operation was cancelled",
    b"E0000 00:00:1732700000.1   77 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting to register factory",
    b"E0000 00:00:1732700000.1   77 posix_engine_listener.cc:185] Closing acceptor. Failed accept4: Invalid argument",
    b"W0000 00:00:1732700000.1   77 computation_placer.cc:177] computation placer already registered.",
]
WITHOUT_GPU = [
    b"E0000 00:00:1732700000.1   77 cuda_executor.cc:1228] INTERNAL: CUDA Runtime error: Failed call to cudaGetRuntime",
    b"2026-11-27 15:00:00.1: E external/local_xla/xla/stream_executor/cuda/cuda_driver.cc:152] failed call to cuInit",
    b"2026-11-27 15:00:00.1: I external/local_tsl/tsl/cuda/cudart_stub.cc:32] Could not find cuda drivers",
]
NEVER = [
    b"epoch 1: loss 0.5",
    b"see generator_dataset_op.cc",
    b"2026-11-27 15:00:00.1: W external/local_tsl/tsl/framework/cpu_allocator_impl.cc:83] Allocation of 8000 exceeds",
    b"E0000 00:00:1732700000.1   77 cuda_dnn.cc:500] Could not create cudnn handle: CUDNN_STATUS_NOT_INITIALIZED",
]


@pytest.mark.parametrize("line", ALWAYS)
def test_noise(line):
    assert is_noise(line, has_gpus=True)
    assert is_noise(line, has_gpus=False)


@pytest.mark.parametrize("line", WITHOUT_GPU)
def test_noise_of_workers_without_gpus(line):
    assert is_noise(line, has_gpus=False)
    assert not is_noise(line, has_gpus=True)


@pytest.mark.parametrize("line", NEVER)
def test_what_is_not_noise(line):
    assert not is_noise(line, has_gpus=False)
