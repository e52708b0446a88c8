"""The strategy of a worker with one device, which has plain variables and uses the group's collectives.

A program sees a ``tf.distribute.Strategy`` of all workers, but the variables that it creates in the strategy's scope
are ordinary ones, as in one process. Custom loops, which call ``Strategy.run``, follow the convention of
``tf.distribute``: a loss is divided by the global batch size, and gradients are summed. Keras' steps compute as if each
worker were alone; see ``replica_step``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ..data.passes import shard_states_of
from .batch_notes import note_batch
from .batch_parts import BatchPart, as_part, part_of
from .collectives import NO_COLLECTIVES, Collectives
from .device_data import to_device
from .keras_step import run_keras_step
from .private_names import DISTRIBUTE_INPUT, DISTRIBUTE_INPUT_LIB, DISTRIBUTE_LIB
from .replica_step import current_method, current_step, divides_batches, is_alone
from .variable_sync import VariableSync

_extended_base: Any = DISTRIBUTE_LIB.load().StrategyExtendedV1


class ReplicaStrategy(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
    """A strategy with one replica on each worker.

    It passes for a ``MultiWorkerMirroredStrategy`` in programs that check its type, but creates plain variables.

    Args:
        collectives: Connects this worker to the others.
        device: The device of this worker's replica, such as ``"/device:GPU:0"``.
        cluster_resolver: Describes the cluster to the program.
    """

    def __init__(self, collectives: Collectives, device: str, cluster_resolver: Any = None) -> None:
        tf.distribute.Strategy.__init__(self, _ReplicaExtended(self, collectives, device, cluster_resolver))

    @property
    def collectives(self) -> Collectives:
        """The connection to the other workers."""
        return self.extended.collectives  # type: ignore[no-any-return]

    @property
    def variables(self) -> VariableSync:
        """The variables created in the strategy's scope."""
        return self.extended.variables  # type: ignore[no-any-return]


def replica_strategy(strategy: object = None) -> ReplicaStrategy | None:
    """Return the strategy (by default, the current one) if it is a ReplicaStrategy of several workers, else None."""
    found = tf.distribute.get_strategy() if strategy is None else strategy
    return found if isinstance(found, ReplicaStrategy) and found.collectives.world_size > 1 else None


class StepContext(tf.distribute.ReplicaContext):  # type: ignore[misc]
    """The replica context of a Keras step, in which gradients are means over a replica's rows.

    In ``tf.distribute``, the gradient of a sum over the replicas is the sum of their gradients. Here it is the sum of
    their gradients, weighted by rows.
    """

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        extended, step = self.strategy.extended, current_step()
        leaves = tf.nest.flatten(value)
        if step is None or extended.is_reduced or any(isinstance(leaf, tf.IndexedSlices) for leaf in leaves):
            return extended._replica_ctx_all_reduce(reduce_op, value, options)
        operation = tf.distribute.ReduceOp(reduce_op.upper()) if isinstance(reduce_op, str) else reduce_op

        def reduce(*tensors: tf.Tensor) -> Any:
            def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
                weighted = [step.weighted(each, operation) for each in upstream]
                return list(map(tf.zeros_like, weighted)) if step.part.is_idle else weighted

            # The arbitrary batch of an idle worker enters no sum, such as those of SyncBatchNorm, and has no gradient.
            own = map(tf.zeros_like, tensors) if step.part.is_idle else tensors
            return extended._replica_ctx_all_reduce(operation, list(own)), gradient

        return tf.nest.pack_sequence_as(value, tf.custom_gradient(reduce)(*map(tf.convert_to_tensor, leaves)))

    def all_gather(self, value: Any, axis: Any, options: Any = None) -> Any:
        extended, step = self.strategy.extended, current_step()
        if step is None:
            return super().all_gather(value, axis, options)

        def gather(tensor: tf.Tensor) -> Any:
            own = tf.gather(tensor, tf.range(0), axis=axis) if step.part.is_idle else tensor

            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                total = step.weighted(upstream, tf.distribute.ReduceOp.SUM)
                counts = step.collectives.all_gather(tf.shape(own)[axis])
                begin = tf.reduce_sum(counts[: step.collectives.rank])
                part = tf.range(begin, begin + tf.shape(own)[axis])
                return tf.zeros_like(tensor) if step.part.is_idle else tf.gather(total, part, axis=axis)

            return extended._gather_to_implementation(own, None, axis, options), gradient

        return tf.nest.map_structure(lambda leaf: tf.custom_gradient(gather)(tf.convert_to_tensor(leaf)), value)


class _ReplicaExtended(_extended_base):  # type: ignore[misc]
    """The implementation behind the strategy's public methods."""

    def __init__(self, strategy: ReplicaStrategy, collectives: Collectives, device: str, resolver: Any) -> None:
        super().__init__(strategy)
        self._collectives, self._device, self._cluster_resolver = collectives, device, resolver
        self.variables = VariableSync(collectives)
        # True while an optimizer applies gradients that are already reduced: reductions then return their argument.
        self.is_reduced = False
        self._known_code: set[Any] = set()
        self._is_in_run = False

    # Properties.

    @property
    def collectives(self) -> Collectives:
        return NO_COLLECTIVES if is_alone() else self._collectives

    @property
    def _num_replicas_in_sync(self) -> int:
        return 1 if current_step() is not None else self.collectives.world_size

    @property
    def worker_devices(self) -> tuple[str]:
        return (self._device,)

    @property
    def parameter_devices(self) -> tuple[str]:
        return (self._device,)

    @property
    def experimental_should_init(self) -> bool:
        return True

    @property
    def experimental_between_graph(self) -> bool:
        return False

    @property
    def should_checkpoint(self) -> bool:
        return self.collectives.rank == 0

    @property
    def should_save_summary(self) -> bool:
        return self.collectives.rank == 0

    @property
    def _global_batch_size(self) -> bool:
        return True

    @property
    def _num_workers(self) -> int:
        return self.collectives.world_size

    @property
    def _task_id(self) -> int:
        return self.collectives.rank

    def _in_multi_worker_mode(self) -> bool:
        return self.collectives.world_size > 1

    def _use_merge_call(self) -> bool:
        return False

    def _get_local_replica_id(self, replica_id_in_sync_group: int) -> int:
        del replica_id_in_sync_group
        return 0

    def _get_replica_id_in_sync_group(self, replica_id: int) -> int:
        del replica_id
        return self.collectives.rank

    # Variables.

    def _create_variable(self, next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        kwargs.pop("colocate_with", None)
        with tf.device(self._device):
            variable = next_creator(**kwargs)
        # Steps create variables on all workers at the same time; other code may run on some of them only.
        in_step = current_step() is not None or self._is_in_run
        self.variables.add(variable, on_all_ranks=in_step and not is_alone())
        return variable

    def _validate_colocate_with_variable(self, colocate_with_variable: Any) -> None:
        del colocate_with_variable

    def read_var(self, v: Any) -> tf.Tensor:
        return tf.identity(v)

    def value_container(self, value: Any) -> Any:
        return value

    def _local_results(self, val: Any) -> tuple[Any, ...]:
        return (_local_value(val),)

    def non_slot_devices(self, var_list: Any) -> tuple[str]:
        del var_list
        return (self._device,)

    def _update(self, var: Any, fn: Callable[..., Any], args: Sequence[Any], kwargs: Any, group: bool) -> Any:
        return self._update_non_slot(var, fn, (var, *args), kwargs, group)

    def _update_non_slot(self, colocate_with: Any, fn: Any, args: Any, kwargs: Any, group: bool) -> Any:
        del colocate_with
        with tf.device(self._device), DISTRIBUTE_LIB.load().UpdateContext(self._device):
            result = fn(*args, **kwargs)
        return result if group else tf.nest.map_structure(self._local_results, result)

    def _replica_ctx_update(self, var: Any, fn: Any, args: Any = (), kwargs: Any = None, group: bool = True) -> Any:
        return self._update(var, fn, args, kwargs or {}, group)

    # Communication.

    def _call_for_each_replica(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        args, kwargs = tf.nest.map_structure(_local_value, (tuple(args), dict(kwargs or {})))
        strategy, part = self._container_strategy(), self._part_for(fn, args)
        with tf.device(self._device):
            if part is not None:
                note_batch(part.batch)
                with StepContext(strategy, replica_id_in_sync_group=0):
                    return run_keras_step(fn, part, self.collectives, self.variables)
            if not is_alone():
                self._synchronise_for(fn)
            before, self._is_in_run = self._is_in_run, True
            try:
                with tf.distribute.ReplicaContext(strategy, replica_id_in_sync_group=self.collectives.rank):
                    return fn(*args, **kwargs)
            finally:
                self._is_in_run = before

    def _synchronise_for(self, fn: Callable[..., Any]) -> None:
        """Give variables the same initial values on all workers before each function of the program is first called."""
        # AutoGraph wraps every function in one with the same code.
        function = inspect.unwrap(getattr(fn, "python_function", fn))
        code = getattr(function, "__code__", type(function))
        if code not in self._known_code:
            self._known_code.add(code)
            self.variables.synchronise()

    def _part_for(self, fn: Callable[..., Any], args: Sequence[Any]) -> BatchPart | None:
        """Return the replica's part of the batch if the arguments are those of a Keras step, else None."""
        if not args:
            return None
        if (part := as_part(args[0])) is not None:
            return part
        # A model that builds its own train, test or predict function passes whole batches to its steps.
        is_step = getattr(inspect.unwrap(fn), "__name__", "") in ("train_step", "test_step", "predict_step")
        if not is_step or len(args) != 1 or not current_method():
            return None
        if divides_batches():
            return part_of(args[0], self.collectives.rank, self.collectives.world_size)
        return BatchPart(args[0])

    def _replica_ctx_all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        if self.is_reduced:
            return value
        leaves = tf.nest.flatten(value, expand_composites=False)
        dense = [index for index, leaf in enumerate(leaves) if not isinstance(leaf, tf.IndexedSlices)]
        tensors = [tf.convert_to_tensor(leaves[index]) for index in dense]
        for index, total in zip(dense, self.collectives.all_reduce_packed(tensors), strict=True):
            leaves[index] = total
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, tf.IndexedSlices):
                leaves[index] = tf.IndexedSlices(
                    self.collectives.gather_rows(leaf.values),
                    self.collectives.gather_rows(leaf.indices),
                    leaf.dense_shape,
                )
        if reduce_op == tf.distribute.ReduceOp.MEAN:
            leaves = [_divided(leaf, self.collectives.world_size) for leaf in leaves]
        return tf.nest.pack_sequence_as(value, leaves)

    def _reduce_to(self, reduce_op: Any, value: Any, destinations: Any, options: Any) -> Any:
        del destinations
        value = _local_value(value)
        if not isinstance(value, tf.IndexedSlices):
            value = tf.convert_to_tensor(value)
        return self._replica_ctx_all_reduce(reduce_op, value, options)

    def _gather_to_implementation(self, value: Any, destinations: Any, axis: Any, options: Any) -> tf.Tensor:
        del destinations, options
        value = tf.convert_to_tensor(_local_value(value))
        if isinstance(axis, int) and axis == 0:
            return self.collectives.gather_rows(value)
        rank = tf.rank(value)
        order = tf.concat([[axis], tf.range(axis), tf.range(axis + 1, rank)], axis=0)
        back = tf.concat([tf.range(1, axis + 1), [0], tf.range(axis + 1, rank)], axis=0)
        return tf.transpose(self.collectives.gather_rows(tf.transpose(value, order)), back)

    def _broadcast_to(self, tensor: Any, destinations: Any) -> Any:
        del destinations
        return tensor

    # Data of custom loops, divided in the same way as in tf.distribute.

    def _input_context(self) -> tf.distribute.InputContext:
        size, rank = self.collectives.world_size, self.collectives.rank
        return tf.distribute.InputContext(size, rank, size)

    def _input_workers(self, options: Any) -> Any:
        return DISTRIBUTE_INPUT_LIB.load().InputWorkers([("/device:CPU:0", (self._target(options),))])

    def _target(self, options: Any) -> str:
        """Return the device that the batches of a custom loop go to."""
        return self._device if not options or options.experimental_fetch_to_device else "/cpu:0"

    def _experimental_distribute_dataset(self, dataset: Any, options: Any) -> Any:
        if self.collectives.world_size == 1 or shard_states_of(dataset):
            # Not through tf.distribute, whose iterators begin a pass when they are created, even if nobody reads it,
            # and may crash if they are destroyed while they are being filled (see kept_iterators).
            return to_device(dataset, self._target(options))
        return DISTRIBUTE_INPUT.load().get_distributed_dataset(
            dataset,
            self._input_workers(options),
            self._container_strategy(),
            num_replicas_in_sync=self.collectives.world_size,
            input_context=self._input_context(),
            options=options,
        )

    def _distribute_datasets_from_function(self, dataset_fn: Callable[[Any], Any], options: Any) -> Any:
        if self.collectives.world_size == 1:
            return to_device(dataset_fn(self._input_context()), self._target(options))
        return DISTRIBUTE_INPUT.load().get_distributed_datasets_from_function(
            dataset_fn,
            self._input_workers(options),
            [self._input_context()],
            self._container_strategy(),
            options=options,
        )

    def _experimental_distribute_values_from_function(self, value_fn: Callable[[Any], Any]) -> Any:
        size, rank = self.collectives.world_size, self.collectives.rank
        return value_fn(tf.distribute.experimental.ValueContext(rank, size))


def _local_value(value: Any) -> Any:
    """Return this worker's component of a distributed value, which the iterators of ``tf.distribute`` yield."""
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value


def _divided(value: Any, count: int) -> Any:
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(_divided(value.values, count), value.indices, value.dense_shape)
    return value / tf.cast(count, value.dtype) if value.dtype.is_floating or value.dtype.is_complex else value // count
