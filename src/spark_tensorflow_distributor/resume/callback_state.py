"""The state of callbacks and of the history, as plain values, and how to restore it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np

from ..errors import CheckpointError
from . import snapshot

# A callback of Keras 3 or tf_keras.
Callback: TypeAlias = Any
# What Keras passes to callbacks.
Logs: TypeAlias = Mapping[str, Any]


# A callback's class, and its attributes.
_ClassAndState = TypedDict("_ClassAndState", {"class": str, "state": dict[str, object]})


class CallbackState(_ClassAndState, total=False):
    """The state of a callback.

    Attributes:
        in_place: The attributes that have been the same object since training began, while its contents changed; absent
            in older checkpoints.
    """

    in_place: list[str]


class Start(NamedTuple):
    """An attribute of a callback when training began."""

    value: object
    fingerprint: bytes


_SIMPLE = (type(None), bool, int, float, str, bytes, np.ndarray, np.generic)
# Deeper structures are not saved; neither are those that contain themselves.
_MAX_DEPTH = 50

# Attributes that belong to the callback's process, and min_delta, whose sign EarlyStopping and ReduceLROnPlateau flip
# when they first see the metric.
_NOT_STATE = ("model", "_model", "params", "validation_data", "append", "append_header", "min_delta")


def callbacks_at_start(callbacks: Iterable[Callback]) -> list[dict[str, Start]]:
    """Return the attributes of callbacks when training begins, with which :func:`callback_states` compares them."""
    return [
        {name: Start(value, fingerprint) for name, value, fingerprint in _plain_attributes(callback)}
        for callback in callbacks
    ]


def callback_states(callbacks: Iterable[Callback], at_start: Sequence[Mapping[str, Start]] = ()) -> list[CallbackState]:
    """Return copies of the plain attributes of each callback, such as the best value so far.

    They are copies, because callbacks continue to change lists, dicts and arrays while a checkpoint is written.

    Args:
        callbacks: The callbacks of a ``fit``.
        at_start: The result of :func:`callbacks_at_start`. Attributes that have not changed since are left out: they
            are constructor arguments, which may differ between ranks.
    """
    states: list[CallbackState] = []
    for index, callback in enumerate(callbacks):
        before = at_start[index] if at_start else {}
        state, in_place = {}, []
        for name, value, fingerprint in _plain_attributes(callback):
            start = before.get(name)
            if start is None or fingerprint != start.fingerprint:
                state[name] = snapshot.copy_state(value)
                if start is not None and start.value is value:
                    in_place.append(name)
        states.append({"class": type(callback).__name__, "state": state, "in_place": in_place})
    return states


def restore_callbacks(callbacks: Sequence[Callback], states: Sequence[CallbackState]) -> None:
    """Restore what :func:`callback_states` returned.

    Callbacks are matched by class, and within a class by order: some may exist on rank 0 only, such as those that write
    files.
    """
    waiting = list(states)
    for callback in callbacks:
        found = next((state for state in waiting if state["class"] == type(callback).__name__), None)
        if found is not None:
            waiting.remove(found)
            for name, value in found["state"].items():
                if name not in found.get("in_place", ()) or not _refill(vars(callback).get(name), value):
                    callback.__dict__[name] = value


def _refill(target: object, value: object) -> bool:
    """Replace the contents of an object; return False if the object has another form.

    The object remains the one that the program may also know by another name, and keeps its class, such as
    ``defaultdict``.
    """
    if isinstance(target, dict) and isinstance(value, dict):
        target.clear()
        target.update(value)
    elif isinstance(target, list) and isinstance(value, list):
        target[:] = value
    elif (
        isinstance(target, np.ndarray)
        and isinstance(value, np.ndarray)
        and (target.shape, target.dtype, target.flags.writeable) == (value.shape, value.dtype, True)
    ):
        target[...] = value
    else:
        return False
    return True


def history_of(model: Any, ended: tuple[int, Logs] | None) -> tuple[dict[str, list[object]], list[int]]:
    """Return the values and the epochs of a model's history.

    Args:
        model: The model in training.
        ended: Number and logs of an epoch that has just ended, which the history may not have recorded yet.
    """
    recorded = getattr(model, "history", None)
    history = {name: list(values) for name, values in getattr(recorded, "history", {}).items()}
    epochs = [int(each) for each in getattr(recorded, "epoch", ())]
    if ended is not None and ended[0] not in epochs:
        epochs.append(ended[0])
        for name, value in ended[1].items():
            history.setdefault(name, []).append(value)
    return {name: [_plain_value(each) for each in values] for name, values in history.items()}, epochs


def restore_history(model: Any, history: Mapping[str, list[object]], epochs: Sequence[int]) -> None:
    """Put a result of :func:`history_of` in front of what was recorded since; calling this again is harmless."""
    recorded = model.history
    recorded.epoch[:0] = [each for each in epochs if each not in recorded.epoch]
    for name, values in history.items():
        if len(recorded.history.get(name, ())) < len(values):
            recorded.history[name] = list(values)


def _plain_attributes(callback: Callback) -> Iterator[tuple[str, object, bytes]]:
    """Yield name, value and fingerprint of each attribute that a checkpoint can hold."""
    for name, value in vars(callback).items():
        if name not in _NOT_STATE and _is_simple(value):
            with contextlib.suppress(CheckpointError):  # an array of structures
                yield name, value, snapshot.fingerprint(value)


def _is_simple(value: object, depth: int = 0) -> bool:
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_simple(each, depth + 1) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_simple(each, depth + 1) for each in value)
    return isinstance(value, _SIMPLE) and getattr(getattr(value, "dtype", None), "kind", "") != "O"


def _plain_value(value: Any) -> object:
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return np.asarray(value).tolist()
