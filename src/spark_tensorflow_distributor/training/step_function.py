"""The function that Keras 3 calls for each execution of steps, for a replica."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from .batch_parts import BatchPart, part_of
from .collectives import Collectives
from .early_variables import create_early
from .keras_step import combines_logs
from .part_data import PartIterator
from .replica import ReplicaStrategy
from .same_batches import identical_on_all
from .step_times import step_times


class StepFunction:
    """Runs ``steps_per_execution`` steps of a model in each call, and returns the outputs of the last one.

    Keras runs these steps in a TensorFlow loop, where a worker could not ask the others whether data is left.

    Args:
        model: The model.
        step: The model's step, a function of a batch.
        strategy: The strategy of all workers.
        keras_function: Returns the function that Keras would call.
    """

    def __init__(
        self,
        model: Any,
        step: Callable[[Any], Any],
        strategy: ReplicaStrategy,
        keras_function: Callable[[], Callable[[Any], Any]],
    ) -> None:
        self._model, self._step, self._strategy = model, step, strategy
        self._make_keras_function = keras_function
        self._keras_function: Callable[[Any], Any] | None = None
        self._is_traced = False
        # The graphs for the parts of each iterator, by combines_logs() and the attributes that are not tensors.
        self._graphs: weakref.WeakKeyDictionary[PartIterator, dict[Any, Callable[[BatchPart], Any]]]
        self._graphs = weakref.WeakKeyDictionary()
        # The graphs for batches without such an iterator, as in ``train_on_batch``, by combines_logs() and spec.
        self._graphs_of_batches: dict[tuple[bool, str], Callable[[BatchPart], Any]] = {}

        def one_step(part: BatchPart) -> Any:
            batch = tf.nest.map_structure(_without_optional, part.batch)
            return strategy.run(step, args=(part._replace(batch=batch),))

        self._run = tf.autograph.experimental.do_not_convert(one_step)
        # The functions that trace the step, by combines_logs(), which TensorFlow does not consider in its choice of a
        # graph: a callback of a fit whose logs are not read may call train_on_batch, whose logs are.
        self._traced = {
            combines: tf.function(self._run, reduce_retracing=True, jit_compile=model.jit_compile or None)
            for combines in (False, True)
        }

    def __call__(self, iterator: Any) -> Any:
        """Run the next steps.

        Args:
            iterator: A PartIterator, or any iterator over batches.

        Raises:
            StopIteration, tf.errors.OutOfRangeError: If no data is left.
        """
        part_iterator = iterator if isinstance(iterator, PartIterator) else None
        parts = _parts_of(iterator, self._strategy.collectives) if part_iterator is None else part_iterator
        outputs = None
        for _ in range(self._model.steps_per_execution):
            step_times.begin()
            try:
                part = next(parts)
            except (StopIteration, tf.errors.OutOfRangeError):
                step_times.cancel()
                if outputs is not None:
                    break
                if part_iterator is not None and (ended := part_iterator.ended_iterator) is not None:
                    self._end_as_keras(ended)
                raise
            step_times.has_batch()
            outputs = (self._run if self._model.run_eagerly else self._graph_for(part, part_iterator))(part)
            step_times.end()
        return outputs

    def _end_as_keras(self, ended: tf.data.Iterator) -> None:
        """Do what Keras does when data of unknown length runs out.

        In one process, the data runs out within a step. The operations of that step that need no data are executed: the
        optimizer counts the step, and random generators advance.
        """
        if self._model.steps_per_execution == 1 and not self._model.run_eagerly:
            if self._keras_function is None:
                self._keras_function = self._make_keras_function()
            self._keras_function(ended)

    def _graph_for(self, part: BatchPart, iterator: PartIterator | None) -> Callable[[BatchPart], Any]:
        """Return the graph for a part, which is the same on all replicas.

        TensorFlow would choose the graph by the part's shape, which may differ between replicas. A graph for a known
        number of rows may weight its rows differently from a graph for any number: Keras weights the losses of single
        outputs by the number of rows if the graph knows it, and counts them once per step otherwise.
        """
        if iterator is None:
            spec = _same_on_all(_spec_of(part))
            key = combines_logs(), repr(spec)
            if key not in self._graphs_of_batches:
                self._graphs_of_batches[key] = self._trace(spec)
            return self._graphs_of_batches[key]
        graphs = self._graphs.setdefault(iterator, {})
        kind = combines_logs(), *part[3:]
        if kind not in graphs:
            graphs[kind] = self._trace(_same_on_all(iterator.spec_of(part)))
        return graphs[kind]

    def _trace(self, spec: BatchPart) -> Callable[[BatchPart], Any]:
        """Return a graph for parts that match a specification; trace it if there is none yet."""
        graph: Callable[[BatchPart], Any]
        traced = self._traced[combines_logs()]
        step_times.cancel()  # the time of a step that is traced is not typical
        if self._is_traced:
            graph = traced.get_concrete_function(spec)
            return graph
        # No worker has executed a step yet with the variables that are created now.
        variables = self._strategy.variables
        with variables.deferred():
            with self._strategy.scope():
                create_early(self._model, self._step, spec.batch)
            graph = traced.get_concrete_function(spec)
        variables.synchronise()
        self._is_traced = True
        return graph


def _spec_of(part: BatchPart) -> BatchPart:
    """Return a copy of the part with type specifications instead of tensors."""
    batch, begin, rows = tf.nest.map_structure(
        lambda leaf: None if leaf is None else tf.type_spec_from_value(leaf), (part.batch, part.begin, part.global_rows)
    )
    return part._replace(batch=batch, begin=begin, global_rows=rows)


def _same_on_all(spec: BatchPart) -> BatchPart:
    """Return a specification for any number of rows, unless all replicas have the same number, and more than one.

    A dimension of 1 could also be one that all rows share, for example in a noise shape.
    """
    shapes = [leaf.shape for leaf in tf.nest.flatten(spec.batch) if hasattr(leaf, "shape")]
    has_one_row = any(shape.rank and shape[0] == 1 for shape in shapes)
    if (spec.is_even and not has_one_row) or spec.is_whole is True:
        return spec
    return spec._replace(batch=tf.nest.map_structure(_of_any_rows, spec.batch))


def _of_any_rows(spec: Any) -> Any:
    """Return a tensor's specification without its first dimension."""
    shape = getattr(spec, "shape", None)
    if shape is None or not shape.rank or shape[0] is None:
        return spec
    shape = [None, *shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.SparseTensorSpec(shape, spec.dtype)
    return tf.TensorSpec(shape, spec.dtype, spec.name)


def as_tensor(leaf: Any) -> Any:
    """Return a leaf of a batch as a tensor; None, ragged and sparse tensors stay as they are."""
    is_kept = leaf is None or isinstance(leaf, tf.RaggedTensor | tf.SparseTensor)
    return leaf if is_kept else tf.convert_to_tensor(leaf)


def _without_optional(leaf: Any) -> Any:
    """Return None in place of the Optionals with which Keras' data adapters represent missing values."""
    return None if isinstance(leaf, tf.experimental.Optional) else leaf


def _parts_of(batches: Iterable[Any], collectives: Collectives) -> Iterator[BatchPart]:
    """Yield the replica's parts of batches that do not come from a PartIterator, as in ``train_on_batch``."""
    for batch in batches:
        tensors = tf.nest.map_structure(as_tensor, batch)
        # If the batches differ, each worker has rows of its own, for example from its shard.
        if identical_on_all(tensors, collectives):
            yield part_of(tensors, collectives.rank, collectives.world_size)
        else:
            yield BatchPart(tensors)
