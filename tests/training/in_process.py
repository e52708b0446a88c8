"""A group of workers within one process: a thread for each replica, and collectives through memory.

Hundreds of small trainings take only minutes, because no process has to start. Keras' own state, TensorFlow's default
graphs, strategies and the state of steps are all kept per thread.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from process_groups import make_members
from spark_tensorflow_distributor.process_group.group import ProcessGroup
from spark_tensorflow_distributor.training import fit_hooks, keras_api, patches, replica_hooks, shard_feeding
from spark_tensorflow_distributor.training.collectives import Collectives
from spark_tensorflow_distributor.training.replica import ReplicaStrategy
from spark_tensorflow_distributor.training.socket_collectives import SocketCollectives

# A collective in a graph occupies one of these threads until all replicas have arrived. TensorFlow reads this number
# when it is first used, and no test uses it while tests are collected.
tf.config.threading.set_inter_op_parallelism_threads(16)
# How many seconds replicas wait for one that does not arrive. Tracing a model takes seconds on a busy machine.
_PATIENCE = 60


class OutOfStep(AssertionError):
    """Replicas called different collectives at the same time. Separate processes would hang."""


class Group:
    """The point where the replicas of a group meet.

    Only one replica runs at a time, until it waits for the others. Several would slow each other down, since Python
    runs one thread at a time and may take milliseconds to switch. And nothing that the threads share can change while
    one of them uses it.

    Args:
        size: The number of replicas.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.error: BaseException | None = None
        self._barrier = threading.Barrier(size, timeout=_PATIENCE)
        self._turn = threading.Lock()
        self._brought: list[Any] = [None] * size

    def exchange(self, rank: int, call: str, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of all replicas, by rank; each replica must make the same call with the same shape."""
        self._brought[rank] = (call, array.shape, array.dtype), array
        with self.waiting():
            self._barrier.wait()
            brought = list(self._brought)
            self._barrier.wait()  # until all have read the arrays, which are overwritten next
        if any(kind != brought[0][0] for kind, _ in brought):
            self.fail(OutOfStep(f"the replicas called {[kind for kind, _ in brought]}"))
            raise threading.BrokenBarrierError
        return [each for _, each in brought]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Run while no other replica is running."""
        with self._turn:
            yield

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        # In a graph, this thread is not the one that took the lock, but it works for the same replica.
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()

    def fail(self, error: BaseException) -> None:
        """End the group; only the first error counts."""
        self.error = self.error or error
        self._barrier.abort()


class InProcessCollectives(Collectives):
    """The collectives of a replica that runs in a thread.

    Args:
        group: Where the replica meets the others.
        rank: The replica's rank.
    """

    def __init__(self, group: Group, rank: int) -> None:
        super().__init__(rank, group.size)
        self._group = group

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._through(lambda arrays: functools.reduce(np.add, arrays), "sum", tensor, tensor.shape)

    def _stack(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._through(np.stack, "stack", tensor, [self.world_size, *tensor.shape])

    def _through(self, combine: Callable[[list[Any]], Any], call: str, tensor: tf.Tensor, shape: Any) -> tf.Tensor:
        def exchange(array: np.ndarray) -> np.ndarray:
            # A copy, because TensorFlow may reuse the memory of its tensor.
            arrays = self._group.exchange(self.rank, call, np.array(array))
            return np.asarray(combine(arrays), array.dtype)

        tensor = tf.convert_to_tensor(tensor)
        if tf.executing_eagerly():
            return tf.constant(exchange(tensor.numpy()))
        return tf.ensure_shape(tf.numpy_function(exchange, [tensor], tensor.dtype), shape)


class SocketsInProcess(SocketCollectives):
    """The collectives of a replica that runs in a thread, over a process group.

    Args:
        turns: Lets the other replicas run while this one waits for them.
        group: Connects the replica to the others.
    """

    def __init__(self, turns: Group, group: ProcessGroup) -> None:
        super().__init__(group)
        self._turns = turns

    def _call(self, function: Any, tensors: Any, shapes: Any) -> Any:
        def waiting(arrays: Any) -> Any:
            with self._turns.waiting():
                return function(arrays)

        return super()._call(waiting, tensors, shapes)


# Pairs of replicas share the memory of a machine.
_MACHINES = ("a", "b", "a", "b")


@functools.cache
def patch_this_process() -> None:
    """Apply the patches and hooks of a trainer. Models outside of a ReplicaStrategy's scope train as before."""
    patches.patch_tensorflow()
    patches.apply_patches()
    fit_hooks.hook_methods(keras_api.keras_packages(), (shard_feeding.feed_shards, *replica_hooks.HOOKS))


def on_replicas(count: int, build: Callable[[], Any], train: Callable[[Any], Any], engine: str = "memory") -> list[Any]:
    """Return what ``train(build())`` returns on each replica of a group, by rank.

    Args:
        count: The number of replicas; 0 for one process without a strategy.
        build: Makes a model; replicas call it one after another, because it may use the process's random generators.
        train: Trains the model, on all replicas at the same time.
        engine: How collectives travel: through the ``memory`` of this process, or over ``sockets``.

    Raises:
        BaseException: The error of the replica that failed first.
    """
    patch_this_process()
    group = Group(count or 1)
    results: list[Any] = [None] * group.size
    formed: list[ProcessGroup] = []
    specs, listeners = make_members(_MACHINES[:count]) if engine == "sockets" else ([], [])

    def collectives_of(rank: int, held: contextlib.ExitStack) -> Collectives:
        if not specs:
            return InProcessCollectives(group, rank)
        sockets = ProcessGroup.form(specs[rank], *listeners[rank], _PATIENCE)
        held.callback(sockets.close)
        formed.append(sockets)
        return SocketsInProcess(group, sockets)

    def replica(rank: int) -> None:
        try:
            strategy = ReplicaStrategy(collectives_of(rank, held), "/device:CPU:0") if count else None
            with group.turn(), strategy.scope() if strategy else contextlib.nullcontext():
                model = build()
                group.exchange(rank, "built", np.zeros(0))
                results[rank] = train(model)
                group.exchange(rank, "trained", np.zeros(0))
        except BaseException as error:
            group.fail(error)
            for sockets in formed:
                sockets.leave({"kind": "failed", "text": repr(error)})

    threads = [threading.Thread(target=replica, args=(rank,), name=f"replica {rank}") for rank in range(group.size)]
    with contextlib.ExitStack() as held:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if group.error is not None:
        raise group.error
    return results
