"""Determines whether the indices with which a step looks up a table depend on the rows of the batch.

Positions in a sequence are looked up once for all rows, so one process has one gradient per position, and several
workers must have the same. Words are looked up by each row, so one process has one gradient per word and row. The
difference matters for optimizers that square gradients.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from .graph_origins import is_argument, origins

# Operations whose result depends on the shape of their input, not on its values.
_SHAPES = {"Shape", "ShapeN", "Size", "Rank"}
_ITERATORS = {"IteratorGetNext", "IteratorGetNextAsOptional", "OptionalGetValue"}
_VARIABLES = {"ReadVariableOp", "ResourceGather"}
_SOURCES = _ITERATORS | _VARIABLES


def is_chosen_by_rows(indices: tf.Tensor) -> bool:
    """Return whether the values or the number of the indices depend on the rows of the batch.

    Follows the step's graph backwards from the indices to its inputs. In eager mode, the origin of a tensor is unknown,
    and the result is True.
    """
    if not hasattr(indices, "graph") or tf.executing_eagerly():
        return True
    is_length_static = indices.shape.rank is not None and indices.shape.num_elements() is not None
    for each in origins(indices, _relevant_inputs):
        kind = each.op.type
        if kind in _SHAPES:
            if not is_length_static:
                return True
        elif is_argument(each) or kind in _SOURCES or each.op.op_def.is_stateful:
            return True
    return False


def is_of_variables(tensor: tf.Tensor) -> bool:
    """Return whether a tensor, such as a layer's weights, is computed from variables and not from rows of the batch.

    In eager mode, the origin of a tensor is unknown, and the result is False. Ragged and sparse tensors are rows.

    Args:
        tensor: A tensor, or what can be converted to one, such as a variable of Keras.
    """
    if tf.executing_eagerly() or isinstance(tensor, tf.RaggedTensor | tf.SparseTensor):
        return False
    tensor = tf.convert_to_tensor(tensor)
    size = tensor.shape[0]
    has_variable = False
    for each in origins(tensor, _inputs_with_values):
        kind = each.op.type
        if is_argument(each) or kind in _ITERATORS or "Random" in kind:  # numbers are drawn for rows
            return False
        # If the batch's size is known, its dimension may have become a constant: look for a variable of this size.
        has_variable = has_variable or (kind in _VARIABLES and size in (each.shape or ()))
    return has_variable


def lookups_of(gradient: Any) -> list[Any]:
    """Return the gradients of a table's lookups, which TensorFlow has concatenated, if only some depend on the rows.

    Otherwise, the gradient itself is the only element.
    """
    if not isinstance(gradient, tf.IndexedSlices) or not hasattr(gradient.indices, "graph") or tf.executing_eagerly():
        return [gradient]
    if gradient.values.op.type != "ConcatV2" or gradient.indices.op.type != "ConcatV2":
        return [gradient]
    values, indices = (each.op.inputs[:-1] for each in (gradient.values, gradient.indices))  # the last is the axis
    is_mixed = len({is_chosen_by_rows(each) for each in indices}) > 1
    if not is_mixed or len(values) != len(indices):
        return [gradient]
    return [tf.IndexedSlices(*each, gradient.dense_shape) for each in zip(values, indices, strict=True)]


def joined_lookups(gradients: list[Any]) -> Any:
    """Concatenate the result of :func:`lookups_of` into one gradient again."""
    if len(gradients) == 1:
        return gradients[0]
    values, indices = ([getattr(each, name) for each in gradients] for name in ("values", "indices"))
    return tf.IndexedSlices(tf.concat(values, axis=0), tf.concat(indices, axis=0), gradients[0].dense_shape)


def _relevant_inputs(operation: tf.Operation) -> list[Any]:
    """Return the inputs of an operation; none if it reads a shape or takes another dimension than the first of one."""
    if operation.type in _SHAPES:
        return []
    if operation.type == "StridedSlice" and operation.inputs[0].op.type == "Shape":
        begin = tf.get_static_value(operation.inputs[1])
        if begin is not None and begin.size == 1 and int(begin[0]) > 0:
            return []
    return list(operation.inputs)


def _inputs_with_values(operation: tf.Operation) -> list[Any]:
    """Return the inputs whose values an operation uses; none if it reads a shape."""
    return [] if operation.type in _SHAPES else [each for each in operation.inputs if each.dtype != tf.resource]
