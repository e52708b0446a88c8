"""The state of callbacks and of the history, as plain values, and how to restore it."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np

# A callback of Keras 3 or tf_keras.
Callback: TypeAlias = Any
# What Keras passes to callbacks.
Logs: TypeAlias = Mapping[str, Any]
# A callback's class, and its attributes.
CallbackState = TypedDict("CallbackState", {"class": str, "state": dict[str, object]})

_SIMPLE = (type(None), bool, int, float, str, np.ndarray, np.generic)

# Attributes that belong to the callback's process, and min_delta, whose sign EarlyStopping and ReduceLROnPlateau flip
# when they first see the metric.
_NOT_STATE = ("model", "_model", "params", "validation_data", "append", "append_header", "min_delta")


def callback_states(
    callbacks: Iterable[Callback], baseline: Iterable[CallbackState] | None = None
) -> list[CallbackState]:
    """Return the plain attributes of each callback, such as the best value so far.

    Args:
        callbacks: The callbacks of a ``fit``.
        baseline: The result of this function when training began. Attributes that have not changed since are left out:
            they are constructor arguments, which may differ between ranks.
    """
    states: list[CallbackState] = []
    before = [each["state"] for each in baseline or ()]
    for index, callback in enumerate(callbacks):
        state, old = _plain_attributes(callback), before[index] if before else {}
        changed = {name: value for name, value in state.items() if name not in old or not _is_same(old[name], value)}
        states.append({"class": type(callback).__name__, "state": changed})
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
            callback.__dict__.update(found["state"])


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


def _is_same(one: object, other: object) -> bool:
    return type(one) is type(other) and bool(np.all(one == other))


def _plain_attributes(callback: Callback) -> dict[str, object]:
    return {name: value for name, value in vars(callback).items() if name not in _NOT_STATE and _is_simple(value)}


def _is_simple(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_simple(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_simple(each) for each in value)
    return isinstance(value, _SIMPLE) and getattr(getattr(value, "dtype", None), "kind", "") != "O"


def _plain_value(value: Any) -> object:
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return np.asarray(value).tolist()
