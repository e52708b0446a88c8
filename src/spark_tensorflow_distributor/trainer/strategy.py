"""The strategy of a worker, and what has to be set before TensorFlow starts."""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

_log = logging.getLogger(__name__)

# What TensorFlow says when another process has taken the port.
_PORT_TAKEN = ("Could not start gRPC server",)


class PortTakenError(Exception):
    """Another process bound this worker's port between its choice and its use."""


def configure(tf: Any, *, threads: int, gpus: Sequence[str] | None, gpu_is_shared: bool) -> list[str]:
    """Set threads and GPU memory; returns warnings for the driver.

    Args:
        tf: the tensorflow module, whose devices are not initialised yet.
        threads: this worker's share of the host's cores.
        gpus: what CUDA_VISIBLE_DEVICES lists; empty or None for CPU training.
        gpu_is_shared: other workers use the same GPU.
    """
    if not os.environ.get("TF_NUM_INTRAOP_THREADS"):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    if not os.environ.get("TF_NUM_INTEROP_THREADS"):
        # A collective that waits for its peers holds an inter-op thread: with one thread, two collectives that two
        # workers enter in different order would wait for ever.
        tf.config.threading.set_inter_op_parallelism_threads(max(4, threads))
    if not gpus:
        return []
    return _configure_gpus(tf, gpus, gpu_is_shared)


def _configure_gpus(tf: Any, gpus: Sequence[str], gpu_is_shared: bool) -> list[str]:
    warnings = []
    seen = tf.config.list_physical_devices("GPU")
    if len(seen) < len(gpus):
        build = (
            "is a build without GPU support" if not tf.test.is_built_with_cuda() else "found no usable driver for it"
        )
        warnings.append(
            f"Spark dealt this worker the GPUs {','.join(gpus)}, and TensorFlow sees {len(seen)} of {len(gpus)}: "
            f"TensorFlow {tf.__version__} {build}. Training goes on with what it sees. Install tensorflow[and-cuda] "
            "and a driver that fits it on the executors, or set use_gpu=False."
        )
    if gpu_is_shared:
        for device in seen:
            tf.config.experimental.set_memory_growth(device, True)
        warnings.append(
            "spark.task.resource.<name>.amount is below 1, so several workers share a GPU. NCCL cannot do that: "
            "collectives use rings over the network instead, and GPU memory is taken as needed. One worker a GPU is "
            "faster."
        )
    return warnings


def wait_for_leader(config: Mapping[str, Any], seconds: float = 60.0) -> None:
    """Return when rank 0's server accepts connections, or after ``seconds``; at once on rank 0 itself.

    The other ranks' gRPC clients that come before that server is up are refused, and then wait for a full second
    before they try again (gRPC's initial backoff). Asking every few milliseconds here is what makes a start quick.

    Args:
        config: TF_CONFIG.
        seconds: after which TensorFlow may as well find out itself what is wrong.
    """
    if config["task"]["index"] == 0:
        return
    host, _, port = config["cluster"]["worker"][0].rpartition(":")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.003)


def multi_worker_strategy(tf: Any, *, gpu_is_shared: bool = False) -> Any:
    """A MultiWorkerMirroredStrategy from TF_CONFIG; blocks until all workers have met.

    Raises:
        PortTakenError: this worker's port was taken meanwhile.
    """
    options = None
    if gpu_is_shared:
        ring = tf.distribute.experimental.CommunicationImplementation.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except Exception as error:
        if any(text in str(error) for text in _PORT_TAKEN):
            raise PortTakenError(str(error)) from error
        raise
