"""The strategy of a worker, and the TensorFlow settings that must precede it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from ..process_group.group import ProcessGroup
from .collectives import NO_COLLECTIVES, Collectives
from .kept_iterators import LocalStrategy
from .ports import PortTakenError, tf_config
from .private_names import COLLECTIVE_STRATEGY, EAGER_CONTEXT, GRAPH_STACK, WORKER_UTIL
from .replica import ReplicaStrategy
from .socket_collectives import SocketCollectives
from .tf_collectives import TensorFlowCollectives

_log = logging.getLogger(__name__)

# TensorFlow's message if another process has taken the port.
_PORT_TAKEN = "Could not start gRPC server"


def configure(*, threads: int, gpus: Sequence[str] | None, gpu_is_shared: bool) -> list[str]:
    """Set threads and GPU memory, before TensorFlow initialises its devices; return warnings for the driver.

    Args:
        threads: This worker's share of the host's cores.
        gpus: The GPUs that CUDA_VISIBLE_DEVICES lists; empty or None for training on CPUs.
        gpu_is_shared: Whether other workers use the same GPU.
    """
    if not os.environ.get("TF_NUM_INTRAOP_THREADS"):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    if not os.environ.get("TF_NUM_INTEROP_THREADS"):
        # A collective that waits for its peers occupies an inter-op thread. With a single thread, two workers that
        # enter two collectives in different order would deadlock.
        tf.config.threading.set_inter_op_parallelism_threads(max(4, threads))
    if not gpus:
        return []
    return _configure_gpus(gpus, gpu_is_shared)


def _configure_gpus(gpus: Sequence[str], gpu_is_shared: bool) -> list[str]:
    warnings = []
    seen = tf.config.list_physical_devices("GPU")
    if len(seen) < len(gpus):
        cause = "was built without GPU support" if not tf.test.is_built_with_cuda() else "found no usable GPU driver"
        warnings.append(
            f"Spark assigned the GPUs {','.join(gpus)} to this worker, and TensorFlow sees {len(seen)} of {len(gpus)}: "
            f"TensorFlow {tf.__version__} {cause}. Training continues with the devices that it sees. Install "
            "tensorflow[and-cuda] and a matching driver on the executors, or set use_gpu=False."
        )
    if gpu_is_shared:
        for device in seen:
            tf.config.experimental.set_memory_growth(device, True)
        warnings.append(
            "spark.task.resource.<name>.amount is below 1, so several workers share a GPU. NCCL does not support that: "
            "collectives use rings over the network instead, and GPU memory is allocated as needed. One worker per GPU "
            "is faster."
        )
    return warnings


def mirrored_strategy(*, silent_seconds: float, gpu_is_shared: bool = False) -> tf.distribute.Strategy:
    """Create the strategy of a worker on TensorFlow's own runtime, from TF_CONFIG; block until all workers have joined.

    A worker with one device gets a ReplicaStrategy. A worker with several GPUs gets a MultiWorkerMirroredStrategy, with
    TensorFlow's convention for losses and Keras' own support for that strategy.

    Args:
        silent_seconds: How long a worker may be silent before its peers consider it dead, in seconds.
        gpu_is_shared: Whether several workers use one GPU.

    Raises:
        PortTakenError: If another process has taken this worker's port.
    """
    options = None
    if gpu_is_shared:
        ring = tf.distribute.experimental.CommunicationImplementation.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    try:
        _set_heartbeat_timeout(tf_config()["cluster"], silent_seconds)
    except (ImportError, AttributeError, TypeError) as error:
        _log.warning("workers consider a peer dead after ten seconds of silence, TensorFlow's default: %r", error)
    try:
        mirrored = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except Exception as error:
        if _PORT_TAKEN in str(error):
            raise PortTakenError(str(error)) from error
        raise
    return replica_of(mirrored) if len(mirrored.extended.worker_devices) == 1 else mirrored


def announce_forming(forming: Callable[[], AbstractContextManager[None]]) -> None:
    """Enter a context while the program's own ``MultiWorkerMirroredStrategy`` waits for the other workers."""
    original = tf.distribute.MultiWorkerMirroredStrategy.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with forming():
            original(self, *args, **kwargs)

    tf.distribute.MultiWorkerMirroredStrategy.__init__ = init


def socket_strategy(group: ProcessGroup | None, gradient_compression: str | None = None) -> ReplicaStrategy:
    """Return the strategy of a worker in a process group.

    Args:
        group: The group; None for a single worker.
        gradient_compression: See :class:`~spark_tensorflow_distributor.MirroredStrategyRunner`.
    """
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return _replica(NO_COLLECTIVES if group is None else SocketCollectives(group, gradient_compression), kind)


def _replica(collectives: Collectives, kind: str) -> ReplicaStrategy:
    """Return the strategy of a worker whose cluster TF_CONFIG describes, on its first device of a kind."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return ReplicaStrategy(collectives, f"/device:{kind}:0", resolver)


def replica_of(mirrored: tf.distribute.MultiWorkerMirroredStrategy) -> ReplicaStrategy:
    """Return the strategy of this worker's replica in the group that TensorFlow's strategy formed."""
    (device,) = mirrored.extended.worker_devices
    local_device = "/device:GPU:0" if "GPU" in device.upper() else "/device:CPU:0"
    resolver = mirrored.cluster_resolver
    is_alone = mirrored.num_replicas_in_sync == 1
    collectives = NO_COLLECTIVES if is_alone else TensorFlowCollectives(mirrored)
    return ReplicaStrategy(collectives, local_device, resolver)


def _set_heartbeat_timeout(cluster: Mapping[str, Sequence[str]], silent_seconds: float) -> None:
    """Let a worker be silent as long as the driver allows before its peers consider it dead.

    A link that is down for 5 s may already exceed TensorFlow's default of 10 s: TCP doubles its delay after each
    attempt, so the next attempt may come only after another 5 s.
    """
    job = COLLECTIVE_STRATEGY.load().coordination_config_pb2.CoordinatedJob
    EAGER_CONTEXT.load().context().configure_coordination_service(
        service_type="standalone",
        service_leader=WORKER_UTIL.load().coordination_leader(cluster),
        coordinated_jobs=[job(name=name, num_tasks=len(tasks)) for name, tasks in cluster.items()],
        heartbeat_timeout_in_ms=int(silent_seconds * 1000),
    )


def stay_in_scope(strategy: tf.distribute.Strategy) -> None:
    """Enter the strategy's scope until the process ends; see :func:`kept_scope`."""
    _entered.enter_context(kept_scope(strategy))


_entered = contextlib.ExitStack()  # a scope that is no longer referenced would exit


@contextlib.contextmanager
def kept_scope(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Stay in the strategy's scope within the context, even if this thread calls ``clear_session``.

    In Keras 3 and tf_keras, ``clear_session`` creates a new default graph, but TensorFlow keeps the scope in the old
    one. A model built afterwards would silently train on each worker separately, and leaving the scope would fail. So
    the scope is entered again, and in the end, each scope is left in its own graph.
    """
    entered: list[tuple[tf.Graph, Any]] = []

    def enter() -> None:
        scope = strategy.scope()
        scope.__enter__()
        entered.append((tf.compat.v1.get_default_graph(), scope))

    graphs = GRAPH_STACK.load()._default_graph_stack  # has other attributes in each thread
    before, reset = dict(vars(graphs)), graphs.reset  # every public name of the function calls this

    @functools.wraps(reset)
    def reset_default_graph() -> None:
        was_in_scope = tf.distribute.has_strategy()
        reset()
        if was_in_scope and not tf.distribute.has_strategy():
            enter()

    enter()
    graphs.reset = reset_default_graph
    try:
        yield
    finally:
        graphs.reset = reset
        if "reset" not in before:
            del graphs.reset  # the method of the class again
        while entered:
            graph, scope = entered.pop()
            with contextlib.nullcontext() if graph is tf.compat.v1.get_default_graph() else graph.as_default():
                scope.__exit__(None, None, None)


@contextlib.contextmanager
def local_scope() -> Iterator[None]:
    """Stay in the scope of ``local_mode`` within the context; the process is the user's, so nothing stays behind.

    With one device, the strategy is that of a cluster's only worker. TensorFlow's own, which has a replica for each of
    several GPUs, cannot combine replicas within a condition, as gradient accumulation requires.
    """
    gpus = tf.config.list_physical_devices("GPU")  # listing logical ones would initialise TensorFlow
    if len(gpus) <= 1:
        with kept_scope(_replica(NO_COLLECTIVES, "GPU" if gpus else "CPU")):
            yield
        return
    strategy = LocalStrategy()  # without TF_CONFIG, it is for this process's own devices
    try:
        with kept_scope(strategy):
            yield
    finally:
        strategy.release()
