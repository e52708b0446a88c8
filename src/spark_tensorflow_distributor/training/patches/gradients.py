"""Gradients are summed over the workers before anything else is done with them."""

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Gradients of up to so many bytes go together: a collective costs two or three milliseconds, a copy of this much one.
_PACK_BYTES = 4 << 20

_state = threading.local()


def gradients(tf: Any, keras: Any) -> bool:
    """Sums gradients when ``apply`` begins.

    Keras sums them at the last moment. Before that each worker has clipped its own part, whose norm is another than
    that of the whole; has looked for overflow in its own part, and so may be the only one to skip a step.
    """
    optimizer = keras.optimizers.Optimizer
    if not _clips_before_the_sum(keras):
        return False
    for owner in (keras.src.optimizers.base_optimizer.BaseOptimizer, keras.optimizers.LossScaleOptimizer):
        owner.apply = _summing(tf, owner.apply)
    all_reduce = optimizer._all_reduce_sum_gradients

    @functools.wraps(all_reduce)
    def all_reduce_once(self: Any, grads_and_vars: Any) -> Any:
        return grads_and_vars if _is_summed() else all_reduce(self, grads_and_vars)

    optimizer._all_reduce_sum_gradients = all_reduce_once
    return True


def _clips_before_the_sum(keras: Any) -> bool:
    done: list[str] = []

    def clip(gradients: Any) -> Any:
        done.append("clip")
        return gradients

    optimizer = types.SimpleNamespace(
        gradient_accumulation_steps=None,
        use_ema=False,
        learning_rate=0.1,
        _iterations=types.SimpleNamespace(assign_add=lambda count: None),  # Keras 3.5 counts here
        _clip_gradients=clip,
        _apply_weight_decay=lambda variables: None,
        _backend_update_step=lambda *_: done.append("sum and update"),
    )
    keras.optimizers.Optimizer._backend_apply_gradients(optimizer, ["gradient"], ["variable"])
    if len(done) != 2:
        raise RuntimeError(f"an update goes another way: {done}")
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


def _summing(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        replica = tf.distribute.get_replica_context()
        if _is_summed() or replica is None or replica.num_replicas_in_sync == 1:
            return original(self, grads, trainable_variables)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        with _summed():
            return original(self, summed_gradients(tf, replica, list(grads), variables), trainable_variables)

    return apply


def summed_gradients(tf: Any, replica: Any, gradients: list[Any], variables: Sequence[Any]) -> list[Any]:
    """The sums over all replicas.

    Args:
        tf: TensorFlow.
        replica: the replica context.
        gradients: tensors or IndexedSlices; None stays None.
        variables: those that they belong to.
    """
    results = list(gradients)
    together: dict[Any, list[tuple[int, Any]]] = {}
    slices: list[int] = []
    for index, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        if gradient is None:
            continue
        if getattr(variable, "overwrite_with_gradient", False):
            # Not a gradient but the variable's next value: of a scale for quantised products, where the largest counts.
            results[index] = tf.reduce_max(replica.all_gather(gradient[tf.newaxis], axis=0), axis=0)
        elif not isinstance(gradient, tf.IndexedSlices):
            tensor = tf.convert_to_tensor(gradient)
            together.setdefault(tensor.dtype, []).append((index, tensor))
        elif gradient.dtype == tf.float32:
            slices.append(index)
        else:
            results[index] = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradient)
    counts_of = dict(zip(slices, row_counts(tf, replica, [gradients[index] for index in slices]), strict=True))
    for index, counts in counts_of.items():
        together.setdefault(tf.float32, []).append((index, spread(tf, replica, gradients[index], counts)))
    for tensors in together.values():
        # The last layers' gradients are there first.
        for pack in packs(tensors[::-1], _PACK_BYTES):
            sums = _all_reduce(tf, replica, [tensor for _, tensor in pack])
            for (index, _), summed in zip(pack, sums, strict=True):
                results[index] = summed
                if index in counts_of:
                    results[index] = collected(tf, summed, gradients[index], counts_of[index])
    return results


def row_counts(tf: Any, replica: Any, slices: list[Any]) -> list[Any]:
    """How many rows of each the replicas have: a number where static shapes tell, or a tensor, [replicas]."""
    counts: list[Any] = [each.values.shape[0] for each in slices]
    unknown = [index for index, count in enumerate(counts) if count is None]
    if unknown:
        own = tf.cast(tf.stack([tf.shape(slices[index].values)[0] for index in unknown]), tf.float32)
        place = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync)
        summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, own[:, tf.newaxis] * place)
        for index, found in zip(unknown, tf.unstack(tf.cast(summed, tf.int32)), strict=True):
            counts[index] = found
    return counts


def spread(tf: Any, replica: Any, slices: Any, counts: Any) -> Any:
    """[replicas, rows, width + 2]: this replica's rows at its place, and zeros. Summed, it has the rows of all.

    Indices go along as two numbers of 24 bits, which a float32 holds exactly. Rows stay apart even where they are of
    one index: Adam and others have their squares, and take those of each row as one process does.
    """
    rows = tf.reshape(slices.values, [tf.shape(slices.values)[0], slices.values.shape[1:].num_elements()])
    indices = tf.cast(slices.indices, tf.int64)
    halves = tf.cast(tf.stack([indices // (1 << 24), indices % (1 << 24)], axis=1), tf.float32)
    most = counts if isinstance(counts, int) else tf.reduce_max(counts)
    padded = tf.pad(tf.concat([rows, halves], axis=1), [[0, most - tf.shape(rows)[0]], [0, 0]])
    place = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync)
    result = place[:, tf.newaxis, tf.newaxis] * padded
    if isinstance(counts, int):
        result = tf.ensure_shape(result, [replica.num_replicas_in_sync, counts, rows.shape[1] + 2])
    return result


def collected(tf: Any, summed: Any, slices: Any, counts: Any) -> Any:
    """The IndexedSlices of all replicas, from the sum of what ``spread`` gave."""
    if isinstance(counts, int):
        rows = tf.reshape(summed, [-1, summed.shape[-1]])
    else:
        rows = tf.boolean_mask(summed, tf.sequence_mask(counts, tf.shape(summed)[1]))
    halves = tf.cast(rows[:, -2:], tf.int64)
    indices = tf.cast(halves[:, 0] * (1 << 24) + halves[:, 1], slices.indices.dtype)
    shape = tf.concat([[-1], tf.shape(slices.values)[1:]], axis=0)
    return tf.IndexedSlices(tf.reshape(rows[:, :-2], shape), indices, slices.dense_shape)


def packs(tensors: Sequence[tuple[int, Any]], limit: int) -> list[list[tuple[int, Any]]]:
    """Neighbours together, up to ``limit`` bytes; a larger one for itself, so that it need not be copied."""
    result: list[list[tuple[int, Any]]] = []
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


def _all_reduce(tf: Any, replica: Any, tensors: list[Any]) -> list[Any]:
    sum_ = tf.distribute.ReduceOp.SUM
    if len(tensors) == 1:
        return [replica.all_reduce(sum_, tensors[0])]
    flat = replica.all_reduce(sum_, tf.concat([tf.reshape(each, [-1]) for each in tensors], axis=0))
    sizes = [each.shape.num_elements() for each in tensors]
    parts = tf.split(flat, sizes if None not in sizes else [tf.size(each) for each in tensors])
    return [
        tf.ensure_shape(tf.reshape(part, tf.shape(each)), each.shape) for part, each in zip(parts, tensors, strict=True)
    ]
