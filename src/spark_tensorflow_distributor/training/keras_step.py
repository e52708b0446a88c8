"""Runs a step of Keras on a replica's part of a batch, and combines what it returns."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from .batch_parts import BatchPart
from .collectives import Collectives
from .replica_step import ReplicaStep, current_method, in_step
from .variable_sync import START, VariableSync

# Whether anything on any worker reads the logs of single steps.
logs_are_read: contextvars.ContextVar[bool] = contextvars.ContextVar("logs_are_read", default=True)
# Whether all workers have the callbacks that save models; programs may give them to the chief alone.
saved_by_all: contextvars.ContextVar[bool] = contextvars.ContextVar("saved_by_all", default=True)


def run_keras_step(fn: Callable[[Any], Any], part: BatchPart, collectives: Collectives, variables: VariableSync) -> Any:
    """Call a step, and return its outputs for the whole batch: predictions of all rows, or logs.

    If nothing reads the logs of single steps, this replica's own logs are returned.

    Args:
        fn: The step, a function of a batch.
        part: The replica's part of the batch.
        collectives: Connects this worker to the others.
        variables: The variables of this replica.
    """
    # With jit_compile, Keras passes a tf.function, which would remember the part with which it was first traced.
    fn = getattr(fn, "python_function", fn)
    step = ReplicaStep(part, collectives)
    if step.counts is not True:
        step.metrics_before = {id(each): tf.identity(each) for each in variables.partial_sums()}
    with in_step(step):
        outputs = fn(part.batch)
    if current_method().startswith("predict"):
        return _all_rows(outputs, step)
    if step.counts is not True:
        for variable in variables.partial_sums():
            variable.assign(counted(step, variable))
    return weighted_mean(outputs, step) if combines_logs() else outputs


def combines_logs() -> bool:
    """Return whether steps of the current method return logs of all workers; this is fixed when a graph is traced."""
    method = current_method()
    return not method.startswith("predict") and (not method or logs_are_read.get())


def counted(step: ReplicaStep, variable: tf.Variable) -> tf.Tensor:
    """Return the value of a metric's variable after a step, or before it if the step does not count."""
    counts = step.counts
    if counts is True:
        return tf.identity(variable)
    before = step.metrics_before.get(id(variable))
    if before is None:  # it was created in this step
        start = getattr(variable, START, None)
        before = tf.zeros(variable.shape, variable.dtype) if start is None else tf.constant(start, variable.dtype)
    return before if counts is False else tf.where(counts, variable, before)


def _all_rows(outputs: Any, step: ReplicaStep) -> Any:
    """Return the predictions of all replicas."""
    is_whole = step.part.is_whole
    if is_whole is True:
        return outputs

    def gather(output: Any) -> Any:
        if isinstance(output, tf.Tensor) and output.shape.rank and not step.counts_rows(output.shape[0], output):
            return output  # such as a table, which all replicas have
        if step.part.is_idle:
            output = _without_rows(output)
        gathered = _gather_output(output, step.collectives)
        # If every replica has the whole batch, so does this one.
        return gathered if is_whole is False else tf.cond(is_whole, lambda: output, lambda: gathered)

    return tf.nest.map_structure(gather, outputs)


def _without_rows(output: Any) -> Any:
    if isinstance(output, tf.SparseTensor):
        shape = output.dense_shape
        return tf.sparse.slice(output, tf.zeros_like(shape), tf.concat([[0], shape[1:]], axis=0))
    has_rows = isinstance(output, tf.Tensor | tf.RaggedTensor) and output.shape.rank
    return output[:0] if has_rows else output


def _gather_output(output: Any, collectives: Collectives) -> Any:
    if isinstance(output, tf.SparseTensor):
        shapes = collectives.all_gather(output.dense_shape)
        rows = shapes[:, :1]
        begin = tf.concat([tf.reduce_sum(rows[: collectives.rank], axis=0), tf.zeros_like(shapes[0, 1:])], axis=0)
        return tf.SparseTensor(
            collectives.gather_rows(output.indices + begin),
            collectives.gather_rows(output.values),
            tf.concat([tf.reduce_sum(rows, axis=0), tf.reduce_max(shapes[:, 1:], axis=0)], axis=0),
        )
    if isinstance(output, tf.RaggedTensor):
        values = collectives.gather_rows(output.flat_values)
        return tf.RaggedTensor.from_nested_row_lengths(
            values, [collectives.gather_rows(lengths) for lengths in output.nested_row_lengths()]
        )
    if not isinstance(output, tf.Tensor) or output.shape.rank == 0:
        return output
    return collectives.gather_rows(output)


def weighted_mean(values: Any, step: ReplicaStep) -> Any:
    """Return a structure with each float tensor replaced by its weighted mean over all workers.

    Args:
        values: A structure of tensors that have the same shapes on all workers. Leaves that are not float tensors are
            left unchanged.
        step: The step that computed them from this worker's rows, whose batch fraction is their weight.
    """
    leaves = tf.nest.flatten(values)
    floats = [index for index, leaf in enumerate(leaves) if isinstance(leaf, tf.Tensor) and leaf.dtype.is_floating]
    means = step.collectives.all_reduce_packed([step.of_rows(leaves[index]) for index in floats], step.batch_fraction())
    for index, mean in zip(floats, means, strict=True):
        leaves[index] = mean
    return tf.nest.pack_sequence_as(values, leaves)
