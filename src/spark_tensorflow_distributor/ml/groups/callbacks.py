"""Refuses callbacks whose methods a group's training does not call. Pure."""

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigurationError

_OF_BATCHES = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
_OF_EVALUATION = ("on_test_begin", "on_test_end", "on_test_batch_begin", "on_test_batch_end")
# Classes of Keras whose batch methods do nothing if this attribute is "epoch".
_FREQUENCIES = {
    "BackupAndRestore": "save_freq",
    "ModelCheckpoint": "save_freq",
    "OrbaxCheckpoint": "save_freq",
    "TensorBoard": "update_freq",
}


def check_callbacks(callbacks: Sequence[Any], base: type, *, has_validation: bool) -> None:
    """Check that the callbacks have only methods that are called: those for epochs and for training.

    Args:
        callbacks: The callbacks.
        base: ``keras.callbacks.Callback``.
        has_validation: Whether there are validation rows, so that Keras would call the evaluation methods.

    Raises:
        ConfigurationError: A callback has batch or evaluation methods.
    """
    names = (*_OF_BATCHES, *(_OF_EVALUATION if has_validation else ()))
    for callback in callbacks:
        if found := [name for name in names if _has(callback, name, base)]:
            raise ConfigurationError(
                f"The callback {type(callback).__name__} has {', '.join(found)}, but a group is trained and evaluated "
                "in a graph, which calls no batch or evaluation methods. Use on_epoch_begin and on_epoch_end, "
                "or train this model by itself."
            )


def _has(callback: Any, name: str, base: type) -> bool:
    """Return whether a callback has a method of its own that would do something."""
    method = getattr(callback, name, None)  # of the object, where LambdaCallback puts its functions
    if method is None or getattr(method, "__func__", method) is getattr(base, name):
        return False
    owner = next(each for each in type(callback).__mro__ if name in vars(each))
    frequency = _FREQUENCIES.get(owner.__name__) if owner.__module__.startswith("keras.") else None
    if name in vars(callback) or frequency is None:
        return True
    return bool(getattr(callback, frequency, "epoch") != "epoch")
