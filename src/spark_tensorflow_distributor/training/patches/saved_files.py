"""Patches for files that a program writes on all workers at once."""

import contextlib
import contextvars
import functools
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np

from ..collectives import Collectives
from ..private_names import KERAS_LEGACY_H5, KERAS_SAVING
from .layer_state import average_state
from .probe import spans_workers

_writes_nothing: contextvars.ContextVar[bool] = contextvars.ContextVar("writes_nothing", default=False)


@contextlib.contextmanager
def _writing_nothing() -> Iterator[None]:
    token = _writes_nothing.set(True)
    try:
        yield
    finally:
        _writes_nothing.reset(token)


def saved_models(keras: ModuleType) -> bool:
    """Write a model's file atomically, and let the chief save alone.

    All workers call ``model.save("model.keras")``; in a shared folder, they would write to one file at once. If the
    chief alone saves or loads, Keras creates an optimizer for comparison, whose variables would wait for the others.
    """
    library: Any = KERAS_SAVING.load()
    library.get_attr_skipset = _outside_of_a_strategy(library.get_attr_skipset)
    hdf5 = KERAS_LEGACY_H5.load()
    for module, name in ((library, "save_model"), (library, "save_weights_only"), (hdf5, "save_model_to_hdf5")):
        setattr(module, name, atomically(getattr(module, name)))
    return True


def _outside_of_a_strategy(original: Callable[[str], Any]) -> Callable[[str], Any]:
    known: dict[str, Any] = {}

    @functools.wraps(original)
    def get_attr_skipset(obj_type: str) -> Any:
        if obj_type not in known:
            # A strategy's scope belongs to its thread.
            thread = threading.Thread(target=lambda: known.__setitem__(obj_type, original(obj_type)))
            thread.start()
            thread.join()
        return known[obj_type] if obj_type in known else original(obj_type)

    return get_attr_skipset


def atomically(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that saves a model, so that its file appears as a whole or not at all."""

    @functools.wraps(original)
    def save(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if _writes_nothing.get():
            return None
        path = os.fspath(filepath) if isinstance(filepath, str | os.PathLike) else ""
        is_file = str(path).endswith((".keras", ".h5", ".hdf5")) and "://" not in str(path)
        if not is_file or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            return original(model, filepath, *args, **kwargs)
        folder, name = os.path.split(os.path.abspath(path))
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}-{name}")
        try:
            result = original(model, temporary, *args, **kwargs)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        return result

    return save


def callbacks(keras: ModuleType) -> bool:
    """Let Keras' callbacks write on the chief only.

    All workers have the same model and the same logs, and would write the same files at once. A worker that restores a
    backup would be alone in that if the others cannot see its folder.
    """
    module = keras.callbacks
    module.ModelCheckpoint._save_model = _saving_once(module.ModelCheckpoint._save_model)
    backup = module.BackupAndRestore
    backup._save_model = _saving_once(backup._save_model)
    backup.on_train_begin = _restoring_together(backup.on_train_begin)
    backup.on_train_end = on_the_chief(backup.on_train_end)
    for callback in (module.CSVLogger, module.TensorBoard):
        for name in [name for name in vars(callback) if name.startswith("on_") or name == "set_model"]:
            setattr(callback, name, on_the_chief(getattr(callback, name)))
    return True


def _is_not_the_chief(model: Any) -> bool:
    """Return whether the model is trained by several workers, and this one is not their chief."""
    strategy: Any = getattr(model, "distribute_strategy", None)
    return spans_workers(strategy) and strategy.cluster_resolver.task_id != 0


def on_the_chief(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a callback's method so that it does nothing on the other workers."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if original.__name__ == "set_model":
            (model,) = (*args, *kwargs.values())
            if _is_not_the_chief(model):
                self._model = model
                return None
        elif _is_not_the_chief(self.model):
            return None
        return original(self, *args, **kwargs)

    return method


def _saving_once(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        average_state(self.model)
        if not _is_not_the_chief(self.model):
            return original(self, *args, **kwargs)
        if not hasattr(self, "verbose"):  # BackupAndRestore
            return None
        verbose, self.verbose = self.verbose, 0
        try:
            with _writing_nothing():
                return original(self, *args, **kwargs)
        finally:
            self.verbose = verbose

    return save_model


def _restoring_together(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def on_train_begin(self: Any, logs: Any = None) -> None:
        model = self.model
        strategy = model.distribute_strategy
        if not spans_workers(strategy):
            original(self, logs)
            return
        is_chief = strategy.cluster_resolver.task_id == 0
        data = None
        if model.optimizer is not None and not model.optimizer.built:  # restoring would build it on the chief only
            model.optimizer.build(model.trainable_variables)
        if is_chief:
            before = model._initial_epoch
            original(self, logs)
            if model._initial_epoch != before:
                data = _pack(_variables(model), model._initial_epoch)
        data = Collectives.of_workers(strategy).broadcast_bytes(data)
        if data is not None and not is_chief:
            with np.load(BytesIO(data)) as arrays:
                model._initial_epoch = json.loads(bytes(arrays["epoch"]))
                for index, variable in enumerate(_variables(model)):
                    variable.assign(arrays[f"variable {index}"])

    return on_train_begin


def _variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _pack(variables: list[Any], epoch: int) -> bytes:
    file = BytesIO()
    arrays = {f"variable {index}": variable.numpy() for index, variable in enumerate(variables)}
    np.savez(file, epoch=np.frombuffer(json.dumps(epoch).encode(), np.uint8), **arrays)
    return file.getvalue()
