"""Sums gradients over the workers before anything else is done with them."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import tensorflow as tf

from ..private_names import KERAS_OPTIMIZER

# Gradients up to this size are packed together: a collective costs two or three milliseconds, copying this much one.
_PACK_BYTES = 4 << 20

_state = threading.local()

# The number of rows per replica: an int if it is known statically, else a tensor, [replicas].
RowCounts: TypeAlias = "int | tf.Tensor"


def gradients(keras: ModuleType) -> bool:
    """Sum gradients when ``apply`` begins.

    Keras sums them at the last moment. By then, each worker has clipped its own part, whose norm differs from that of
    the whole, and has looked for overflow in its own part, so that it may be the only one to skip a step.
    """
    optimizer = keras.optimizers.Optimizer
    if not _clips_before_the_sum(optimizer):
        return False
    for owner in (KERAS_OPTIMIZER.load().BaseOptimizer, keras.optimizers.LossScaleOptimizer):
        owner.apply = _summing(owner.apply)
    all_reduce = optimizer._all_reduce_sum_gradients

    @functools.wraps(all_reduce)
    def all_reduce_once(self: Any, grads_and_vars: Any) -> Any:
        return grads_and_vars if _is_summed() else all_reduce(self, grads_and_vars)

    optimizer._all_reduce_sum_gradients = all_reduce_once
    return True


def _clips_before_the_sum(optimizer_class: Any) -> bool:
    done: list[str] = []

    def clip(gradients: Any) -> Any:
        done.append("clip")
        return gradients

    optimizer = types.SimpleNamespace(
        gradient_accumulation_steps=None,
        use_ema=False,
        learning_rate=0.1,
        _clip_gradients=clip,
        _apply_weight_decay=lambda variables: None,
        _backend_update_step=lambda *_: done.append("sum and update"),
    )
    optimizer_class._backend_apply_gradients(optimizer, ["gradient"], ["variable"])
    if len(done) != 2:
        raise RuntimeError(f"an update has other steps: {done}")
    return done[0] == "clip"


def _is_summed() -> bool:
    return bool(getattr(_state, "is_summed", False))


@contextlib.contextmanager
def _summed() -> Iterator[None]:
    before, _state.is_summed = _is_summed(), True
    try:
        yield
    finally:
        _state.is_summed = before


def _summing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        replica = tf.distribute.get_replica_context()
        if _is_summed() or replica is None or replica.num_replicas_in_sync == 1:
            return original(self, grads, trainable_variables)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        with _summed():
            return original(self, summed_gradients(replica, list(grads), variables), trainable_variables)

    return apply


def summed_gradients(
    replica: tf.distribute.ReplicaContext, gradients: list[Any], variables: Sequence[Any]
) -> list[Any]:
    """Return the sums over all replicas.

    Args:
        replica: The replica context.
        gradients: Tensors or IndexedSlices; None stays None.
        variables: The variable of each gradient.
    """
    results = list(gradients)
    by_dtype: dict[tf.DType, list[tuple[int, tf.Tensor]]] = {}
    slices: list[int] = []
    for index, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        if gradient is None:
            continue
        if getattr(variable, "overwrite_with_gradient", False):
            # Not a gradient but the variable's next value: a scale for quantised products, where the largest counts.
            results[index] = tf.reduce_max(replica.all_gather(gradient[tf.newaxis], axis=0), axis=0)
        elif not isinstance(gradient, tf.IndexedSlices):
            tensor = tf.convert_to_tensor(gradient)
            by_dtype.setdefault(tensor.dtype, []).append((index, tensor))
        elif gradient.dtype == tf.float32:
            slices.append(index)
        else:
            results[index] = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradient)
    counts_of = dict(zip(slices, row_counts(replica, [gradients[index] for index in slices]), strict=True))
    for index, counts in counts_of.items():
        by_dtype.setdefault(tf.float32, []).append((index, spread(replica, gradients[index], counts)))
    for tensors in by_dtype.values():
        # The last layers' gradients are available first.
        for pack in packs(tensors[::-1], _PACK_BYTES):
            sums = _all_reduce(replica, [tensor for _, tensor in pack])
            for (index, _), summed in zip(pack, sums, strict=True):
                results[index] = summed
                if index in counts_of:
                    results[index] = collected(summed, gradients[index], counts_of[index])
    return results


def row_counts(replica: tf.distribute.ReplicaContext, slices: list[tf.IndexedSlices]) -> list[RowCounts]:
    """Return how many rows of each gradient the replicas have."""
    counts: list[Any] = [each.values.shape[0] for each in slices]
    unknown = [index for index, count in enumerate(counts) if count is None]
    if unknown:
        local = tf.cast(tf.stack([tf.shape(slices[index].values)[0] for index in unknown]), tf.float32)
        position = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync)
        summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, local[:, tf.newaxis] * position)
        for index, found in zip(unknown, tf.unstack(tf.cast(summed, tf.int32)), strict=True):
            counts[index] = found
    return counts


def spread(replica: tf.distribute.ReplicaContext, slices: tf.IndexedSlices, counts: RowCounts) -> tf.Tensor:
    """Return this replica's rows at its position in zeros, so that the sum has the rows of all replicas.

    The shape is [replicas, rows, width + 2]. Indices travel as two numbers of 24 bits, which a float32 holds exactly.
    Rows stay separate even if they have the same index: Adam and others square each row, as they do in one process.
    """
    rows = tf.reshape(slices.values, [tf.shape(slices.values)[0], slices.values.shape[1:].num_elements()])
    indices = tf.cast(slices.indices, tf.int64)
    halves = tf.cast(tf.stack([indices // (1 << 24), indices % (1 << 24)], axis=1), tf.float32)
    most = counts if isinstance(counts, int) else tf.reduce_max(counts)
    padded = tf.pad(tf.concat([rows, halves], axis=1), [[0, most - tf.shape(rows)[0]], [0, 0]])
    position = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync)
    result = position[:, tf.newaxis, tf.newaxis] * padded
    if isinstance(counts, int):
        result = tf.ensure_shape(result, [replica.num_replicas_in_sync, counts, rows.shape[1] + 2])
    return result


def collected(summed: tf.Tensor, slices: tf.IndexedSlices, counts: RowCounts) -> tf.IndexedSlices:
    """Return the IndexedSlices of all replicas, from the sum of what ``spread`` returned."""
    if isinstance(counts, int):
        rows = tf.reshape(summed, [-1, summed.shape[-1]])
    else:
        rows = tf.boolean_mask(summed, tf.sequence_mask(counts, tf.shape(summed)[1]))
    halves = tf.cast(rows[:, -2:], tf.int64)
    indices = tf.cast(halves[:, 0] * (1 << 24) + halves[:, 1], slices.indices.dtype)
    shape = tf.concat([[-1], tf.shape(slices.values)[1:]], axis=0)
    return tf.IndexedSlices(tf.reshape(rows[:, :-2], shape), indices, slices.dense_shape)


def packs(tensors: Sequence[tuple[int, tf.Tensor]], limit: int) -> list[list[tuple[int, tf.Tensor]]]:
    """Group neighbours up to ``limit`` bytes; a larger tensor is alone, so that it need not be copied."""
    result: list[list[tuple[int, tf.Tensor]]] = []
    space = 0
    for index, tensor in tensors:
        elements = tensor.shape.num_elements()
        size = limit if elements is None else elements * tensor.dtype.size
        if size > space:
            result.append([])
            space = limit
        result[-1].append((index, tensor))
        space -= size
    return result


def _all_reduce(replica: tf.distribute.ReplicaContext, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    sum_ = tf.distribute.ReduceOp.SUM
    if len(tensors) == 1:
        return [replica.all_reduce(sum_, tensors[0])]
    flat = replica.all_reduce(sum_, tf.concat([tf.reshape(each, [-1]) for each in tensors], axis=0))
    sizes = [each.shape.num_elements() for each in tensors]
    pieces = tf.split(flat, sizes if None not in sizes else [tf.size(each) for each in tensors])
    return [
        tf.ensure_shape(tf.reshape(piece, tf.shape(each)), each.shape)
        for piece, each in zip(pieces, tensors, strict=True)
    ]
