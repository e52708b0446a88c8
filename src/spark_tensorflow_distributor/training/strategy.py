"""The strategy of a worker, and what has to be set before TensorFlow starts."""

import functools
import json
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


def multi_worker_strategy(tf: Any, *, silent_seconds: float, gpu_is_shared: bool = False) -> Any:
    """A MultiWorkerMirroredStrategy from TF_CONFIG; blocks until all workers have met.

    Args:
        tf: the tensorflow module.
        silent_seconds: for which a worker may be silent before its peers give it up.
        gpu_is_shared: several workers use one GPU.

    Raises:
        PortTakenError: this worker's port was taken meanwhile.
    """
    options = None
    if gpu_is_shared:
        ring = tf.distribute.experimental.CommunicationImplementation.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    try:
        _be_patient(json.loads(os.environ["TF_CONFIG"])["cluster"], silent_seconds)
    except (ImportError, AttributeError, TypeError) as error:  # insides that nobody promised to keep
        _log.warning("workers give each other up after ten seconds of silence: %r", error)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except Exception as error:
        if any(text in str(error) for text in _PORT_TAKEN):
            raise PortTakenError(str(error)) from error
        raise


def _be_patient(cluster: Mapping[str, Sequence[str]], silent_seconds: float) -> None:
    """Lets a worker be silent for as long as the driver lets it, before its peers give it up.

    TensorFlow's own limit is 10 s. A link that is down for half of that is over it: TCP doubles its pause after each
    attempt, so that much time passes again until the next one.
    """
    from tensorflow.python.distribute import multi_worker_util
    from tensorflow.python.eager import context

    jobs = [_coordinated_job(name, len(tasks)) for name, tasks in cluster.items()]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(cluster),
        coordinated_jobs=jobs,
        heartbeat_timeout_in_ms=int(silent_seconds * 1000),
    )


def _coordinated_job(name: str, tasks: int) -> Any:
    from tensorflow.python.distribute import collective_all_reduce_strategy

    return collective_all_reduce_strategy.coordination_config_pb2.CoordinatedJob(name=name, num_tasks=tasks)


def stay_in_scope(tf: Any, strategy: Any) -> None:
    """Enter the strategy's scope until the process ends.

    ``clear_session``, in Keras 3 and tf_keras, makes a new default graph, and TensorFlow keeps the scope in the old
    one. What is built after that would train on each worker for itself, and say nothing. So the scope is entered
    again.
    """
    from tensorflow.python.framework import ops

    scopes: list[Any] = []  # one that nobody holds leaves itself

    def enter() -> None:
        scopes.append(strategy.scope())
        scopes[-1].__enter__()

    graphs = ops._default_graph_stack
    reset = graphs.reset  # what all the names under which TensorFlow exports the function come to

    @functools.wraps(reset)
    def reset_default_graph() -> None:
        was_in_scope = tf.distribute.has_strategy()
        reset()
        if was_in_scope and not tf.distribute.has_strategy():
            enter()

    graphs.reset = reset_default_graph
    enter()
