"""What a callback has learnt so far, as plain values, and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_SIMPLE = (type(None), bool, int, float, str, np.ndarray, np.generic)


# Of a callback: what belongs to the process it runs in; and min_delta, whose sign EarlyStopping and ReduceLROnPlateau
# turn when they first see the metric.
_NOT_STATE = ("model", "_model", "params", "validation_data", "append", "append_header", "min_delta")


def callback_states(callbacks: Iterable[Any], begun: Iterable[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The plain attributes of each callback: best value so far, epochs waited, and the like.

    Args:
        callbacks: of a ``fit``.
        begun: what this function gave when training began. What has not changed since is left out: it is how the
            callback was made, which may be another on each rank.
    """
    states = []
    before = [each["state"] for each in begun or ()]
    for place, callback in enumerate(callbacks):
        state, old = _plain_attributes(callback), before[place] if before else {}
        changed = {name: value for name, value in state.items() if name not in old or not _is_same(old[name], value)}
        states.append({"class": type(callback).__name__, "state": changed})
    return states


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(np.all(one == other))


def restore_callbacks(callbacks: Sequence[Any], states: Sequence[Mapping[str, Any]]) -> None:
    """Set what :func:`callback_states` gave: to each the state of the callback of its class.

    Of several of a class in their order. Some may be rank 0's alone, as those that write files.
    """
    waiting = list(states)
    for callback in callbacks:
        found = next((state for state in waiting if state["class"] == type(callback).__name__), None)
        if found is not None:
            waiting.remove(found)
            vars(callback).update(found["state"])
            if getattr(callback, "monitor_op", True) is None and "best" in found["state"]:
                _keep_best(callback)


def _keep_best(callback: Any) -> None:
    """Early releases of Keras 3 (3.5 is one) forget the best value when they look, as an epoch ends, what better is."""
    set_up, best = callback._set_monitor_op, callback.best

    def set_up_and_keep() -> None:
        del callback._set_monitor_op
        set_up()
        callback.best = best

    callback._set_monitor_op = set_up_and_keep


def _plain_attributes(callback: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(callback).items() if name not in _NOT_STATE and _is_simple(value)}


def _is_simple(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_simple(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_simple(each) for each in value)
    return isinstance(value, _SIMPLE) and getattr(getattr(value, "dtype", None), "kind", "") != "O"
