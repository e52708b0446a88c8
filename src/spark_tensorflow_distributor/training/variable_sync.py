"""Gives variables the same initial values on all workers, and keeps track of variables that hold partial sums."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from .collectives import Collectives
from .keras_api import keras_of
from .variable_pairs import Listed, by_position, by_text, differing, unmatched_texts

if TYPE_CHECKING:
    import numpy.typing as npt

_log = logging.getLogger(__name__)

# An attribute of a variable that holds a part of a sum: the value that each part starts from; None or absent for zero.
START = "_spark_tensorflow_distributor_start"


class VariableSync:
    """The variables of a replica.

    Initial values are usually equal, because all workers have the same seeds. If they differ, rank 0's are used. Some
    variables are created on some of the workers only, so they are not exchanged at that moment: the workers compare
    them the next time they all call :meth:`synchronise`.

    Args:
        collectives: Connects this worker to the others.
    """

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._new: list[weakref.ref[tf.Variable]] = []
        self._partial: weakref.WeakValueDictionary[int, tf.Variable] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self._is_deferred = False
        self._created: list[tf.Variable] | None = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Postpone the exchange of variables that all ranks create to the next call of :meth:`synchronise`."""
        before, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = before

    @contextlib.contextmanager
    def collected(self) -> Iterator[list[tf.Variable]]:
        """Collect the variables that are created within the context, except those of a nested one."""
        before, self._created = self._created, []
        try:
            yield self._created
        finally:
            self._created = before

    def add(self, variable: tf.Variable, *, on_all_ranks: bool) -> None:
        """Register a new variable.

        Args:
            variable: The variable.
            on_all_ranks: Whether the other workers create it at the same time, so that its value can be exchanged now.
        """
        if self._created is not None:
            self._created.append(variable)
        if is_partial_sum(variable):
            self._partial[next(self._numbers)] = variable
            return
        if self._collectives.world_size == 1 or not isinstance(variable, tf.Variable):
            return
        if on_all_ranks and not self._is_deferred and tf.executing_eagerly():
            self._exchange([variable])
        else:
            self._new.append(weakref.ref(variable))

    def make_partial_sum(self, variable: tf.Variable) -> None:
        """Make a variable hold this worker's part of a sum over all workers."""
        variable._synchronization = tf.VariableSynchronization.ON_READ
        variable._aggregation = tf.VariableAggregation.SUM
        self._partial[next(self._numbers)] = variable

    def partial_sums(self) -> list[tf.Variable]:
        """Return the variables that hold this worker's part of a sum over all workers: the state of metrics."""
        return list(self._partial.values())

    def synchronise(self, variables: Iterable[tf.Variable] = ()) -> None:
        """Give new variables, and the given ones, the same values on all workers; every rank must call this.

        Args:
            variables: Existing variables that may differ, for example because only one worker has loaded weights; in
                the same order on all workers.
        """
        if self._collectives.world_size == 1:
            return
        with tf.init_scope():
            new = [variable for each in self._new if (variable := each()) is not None]
            # Variables created while a function is traced get their values later.
            self._new = [weakref.ref(each) for each in new if not each.is_initialized()]
            self._exchange(new, variables)

    def _exchange(self, new: Iterable[tf.Variable], given: Iterable[tf.Variable] = ()) -> None:
        known = _exchangeable(given)
        others = {key: each for key, each in _exchangeable(new).items() if key not in known}
        groups = [[(each, each.numpy()) for each in group.values()] for group in (known, others)]
        # The variables of a model have the same order on all workers; new ones may belong to several models.
        texts = [_text(each) for each, _ in groups[0]], [f"{each.name} {_text(each)}" for each, _ in groups[1]]
        mine = [
            [(text, checksum(value)) for text, (_, value) in zip(*each, strict=True)]
            for each in zip(texts, groups, strict=True)
        ]
        found = [json.loads(each) for each in self._collectives.gather_bytes(json.dumps(mine).encode())]
        of_models, of_others = ([listed[index] for listed in found] for index in range(2))
        self._warn(of_models, of_others if not any(of_models) else [])
        chosen = [
            group[match[self._collectives.rank]]
            for group, listed, match_all in zip(groups, (of_models, of_others), (by_position, by_text), strict=True)
            for match in differing(listed, match_all(listed))
        ]
        arrays = self._collectives.broadcast([value for _, value in chosen]) if chosen else []
        for (variable, _), array in zip(chosen, arrays, strict=True):
            variable.assign(array)

    def _warn(self, of_models: Sequence[Listed], of_others: Sequence[Listed]) -> None:
        """Warn on the chief if it is unknown which variables belong together."""
        if self._collectives.rank != 0:
            return
        if len({tuple(text for text, _ in listed) for listed in of_models}) > 1:
            numbers = ", ".join(f"rank {rank}: {len(listed)}" for rank, listed in enumerate(of_models))
            _log.warning(
                "The model and its optimizer have different variables on the workers (%s), so some keep the values of "
                "their worker. Build, compile and load the model on all workers, not on the chief alone.", numbers
            )  # fmt: skip
        elif of_others and (texts := unmatched_texts(of_others)):
            _log.warning(
                "The workers have created different numbers of variables of the same name and shape (%s), so these "
                "keep the values of their worker. Create the same models on all workers.", ", ".join(texts[:3])
            )  # fmt: skip


def is_partial_sum(variable: Any) -> bool:
    """Return whether the variable holds this worker's part of a sum over all workers: a metric's state."""
    return bool(
        getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ
        and getattr(variable, "aggregation", None) == tf.VariableAggregation.SUM
    )


def without_autocast(variable: Any) -> Any:
    """Return the variable inside the wrapper that tf_keras uses for mixed precision; any other variable unchanged.

    Without the private name, the wrapper is returned, which has the same value but is another object.
    """
    return getattr(variable, "_variable", variable) if keras_of(variable) == "tf_keras" else variable


def plain_variable(variable: Any) -> Any:
    """Return the TensorFlow variable inside a Keras 3 variable, or inside tf_keras' wrapper for mixed precision."""
    if isinstance(variable, tf.Variable):
        return without_autocast(variable)
    inner = getattr(variable, "_value", None)
    return variable if inner is None else inner


def _exchangeable(variables: Iterable[tf.Variable]) -> dict[int, tf.Variable]:
    """Return by id the variables whose values workers can compare."""
    return {
        id(each): each for each in variables if is_numeric(each) and not is_partial_sum(each) and each.is_initialized()
    }


def _text(variable: tf.Variable) -> str:
    return f"{variable.shape} {variable.dtype.name}"


def checksum(value: npt.NDArray[Any]) -> int:
    """Return a checksum by which workers compare the values of variables."""
    return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def is_numeric(variable: tf.Variable) -> bool:
    """Return whether a variable holds numbers, not strings or handles."""
    dtype = variable.dtype
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex)
