"""Gives variables the same initial values on all workers, and keeps track of variables that hold partial sums."""

from __future__ import annotations

import contextlib
import itertools
import json
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from .collectives import Collectives


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
        """Collect the variables that are created within the context, except within another one in it."""
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
            variables: Existing variables that may differ, for example because only one worker has loaded weights.
        """
        if self._collectives.world_size == 1:
            return
        with tf.init_scope():
            new = [variable for each in self._new if (variable := each()) is not None]
            # Variables created while a function is traced get their values later.
            self._new = [weakref.ref(each) for each in new if not each.is_initialized()]
            self._exchange([each for each in [*new, *variables] if each.is_initialized()])

    def _exchange(self, variables: list[tf.Variable]) -> None:
        unique = {id(each): each for each in variables if is_numeric(each) and not is_partial_sum(each)}
        values = {key: (each, each.numpy()) for key, each in _keyed(unique.values())}
        mine = [[key, zlib.crc32(value.tobytes())] for key, (_, value) in values.items()]
        found = [dict(json.loads(each)) for each in self._collectives.gather_bytes(json.dumps(mine).encode())]
        differing = [
            key for key in found[0] if all(key in each for each in found) and len({each[key] for each in found}) > 1
        ]
        arrays = self._collectives.broadcast([values[key][1] for key in differing]) if differing else []
        for key, array in zip(differing, arrays, strict=True):
            values[key][0].assign(array)


def is_partial_sum(variable: Any) -> bool:
    """Return whether the variable holds this worker's part of a sum over all workers: a metric's state."""
    return bool(
        getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ
        and getattr(variable, "aggregation", None) == tf.VariableAggregation.SUM
    )


def plain_variable(variable: Any) -> Any:
    """Return the TensorFlow variable inside a Keras 3 variable, or inside tf_keras' wrapper for mixed precision."""
    if isinstance(variable, tf.Variable):
        return getattr(variable, "_variable", variable)
    inner = getattr(variable, "_value", None)
    return variable if inner is None else inner


def _keyed(variables: Iterable[tf.Variable]) -> Iterable[tuple[str, tf.Variable]]:
    """Yield variables with keys by which workers find the variables that they have in common.

    A key consists of name, shape, type and a running number among the variables that share these.
    """
    seen: Counter[str] = Counter()
    for variable in variables:
        text = f"{variable.name} {variable.shape} {variable.dtype.name}"
        seen[text] += 1
        yield f"{text} {seen[text]}", variable


def is_numeric(variable: tf.Variable) -> bool:
    """Return whether a variable holds numbers, not strings or handles."""
    dtype = variable.dtype
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex)
