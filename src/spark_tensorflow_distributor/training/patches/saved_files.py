"""Patches for files that all workers would write at the same time."""

import contextlib
import contextvars
import fcntl
import functools
import inspect
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ..keras_internals import initial_epoch_of, set_initial_epoch
from ..keras_step import saved_by_all
from ..private_names import KERAS_LEGACY_H5, KERAS_SAVING
from ..replica import replica_strategy
from ..variable_sync import plain_variable
from .layer_state import averaged_state

_writes_nothing: contextvars.ContextVar[bool] = contextvars.ContextVar("writes_nothing", default=False)


@contextlib.contextmanager
def _writing_nothing() -> Iterator[None]:
    token = _writes_nothing.set(True)
    try:
        yield
    finally:
        _writes_nothing.reset(token)


def saved_models(keras: ModuleType) -> None:
    """Write a model's file atomically.

    Otherwise, workers that all call ``model.save("model.keras")`` in a shared folder would write to the same file.
    """
    library: Any = KERAS_SAVING.load()
    hdf5 = KERAS_LEGACY_H5.load()
    for module, name in ((library, "save_model"), (library, "save_weights_only"), (hdf5, "save_model_to_hdf5")):
        setattr(module, name, atomically(getattr(module, name)))


def atomically(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that saves a model, so that its file is either complete or absent."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if _writes_nothing.get():
            return None
        path = os.fspath(filepath) if isinstance(filepath, str | os.PathLike) else ""
        is_file = str(path).endswith((".keras", ".h5", ".hdf5")) and "://" not in str(path)
        if not is_file or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            return original(model, filepath, *args, **kwargs)
        given = signature.bind(model, filepath, *args, **kwargs).arguments
        if not given.get("overwrite", True) and os.path.exists(path):  # the original looks for the file by its name
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


def downloads(keras: ModuleType) -> None:
    """Make the trainers of a host call ``get_file`` in turn: the first downloads the file, the others find it.

    ``get_file`` writes to the final name, so another process could read a truncated file.
    """
    original = keras.utils.get_file

    @functools.wraps(original)
    def get_file(*args: Any, **kwargs: Any) -> Any:
        name = f"spark-tensorflow-distributor-downloads-{os.getuid()}.lock"
        with open(os.path.join(tempfile.gettempdir(), name), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return original(*args, **kwargs)

    # The modules of Keras' data sets have imported the function by name. getattr would load TensorFlow's lazy modules.
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("get_file") is original:
            module.get_file = get_file  # type: ignore[attr-defined]


def callbacks(keras: ModuleType) -> None:
    """Make Keras' callbacks write on the chief only.

    All workers have the same model and the same logs, and would write the same files at the same time. Backups are
    restored on the chief and sent to the other workers, which may have no access to the folder.
    """
    module = keras.callbacks
    module.ModelCheckpoint._save_model = _saving_once(module.ModelCheckpoint._save_model)
    backup = module.BackupAndRestore
    backup._save_model = _saving_once(backup._save_model)
    backup.on_train_begin = _restoring_together(backup.on_train_begin)
    backup.on_train_end = on_the_chief(backup.on_train_end)
    for callback in (module.CSVLogger, module.TensorBoard):
        for name in [name for name in vars(callback) if name.startswith("on_")]:
            setattr(callback, name, on_the_chief(getattr(callback, name)))
    # TensorBoard's also creates its files.
    module.TensorBoard.set_model = _replaced_elsewhere(module.TensorBoard.set_model, module.Callback.set_model)


def _is_not_the_chief(model: Any) -> bool:
    """Return whether several workers train the model and this one is not the chief."""
    strategy = replica_strategy(getattr(model, "distribute_strategy", None))
    return strategy is not None and strategy.collectives.rank != 0


def on_the_chief(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a callback's method so that it does nothing on workers other than the chief."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return None if _is_not_the_chief(self.model) else original(self, *args, **kwargs)

    return method


def _replaced_elsewhere(original: Callable[..., None], other: Callable[..., None]) -> Callable[..., None]:
    """Wrap a callback's ``set_model`` so that workers other than the chief call another one."""

    @functools.wraps(original)
    def set_model(self: Any, model: Any) -> None:
        (other if _is_not_the_chief(model) else original)(self, model)

    return set_model


def _saving_once(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_on_the_chief(self: Any, *args: Any, **kwargs: Any) -> Any:
        if saved_by_all.get() and _is_not_the_chief(self.model):
            return _pretend(original, self, args, kwargs)
        return original(self, *args, **kwargs)

    return waiting_for_all(save_on_the_chief)


def waiting_for_all(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a callback's method that saves a file, so that every rank can load the file when the method returns."""

    @functools.wraps(original)
    def save_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        strategy = replica_strategy(self.model.distribute_strategy)
        if strategy is None or not saved_by_all.get():
            return original(self, *args, **kwargs)
        with averaged_state(self.model):
            try:
                return original(self, *args, **kwargs)
            finally:
                strategy.collectives.wait()

    return save_model


def _pretend(original: Callable[..., Any], callback: Any, args: Any, kwargs: Any) -> Any:
    """Run a callback's logic without printing or writing, so that its state stays equal to the chief's."""
    if not hasattr(callback, "verbose"):  # BackupAndRestore
        return None
    verbose, callback.verbose = callback.verbose, 0
    try:
        with _writing_nothing():
            return original(callback, *args, **kwargs)
    finally:
        callback.verbose = verbose


def _restoring_together(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def on_train_begin(self: Any, logs: Any = None) -> None:
        model = self.model
        strategy = replica_strategy(model.distribute_strategy)
        if strategy is None or not saved_by_all.get():
            original(self, logs)
            return
        collectives = strategy.collectives
        if model.optimizer is not None and not model.optimizer.built:  # restoring would build only the chief's
            model.optimizer.build(model.trainable_variables)
        if collectives.rank == 0:
            original(self, logs)
        epoch = collectives.broadcast_bytes(json.dumps(initial_epoch_of(model)).encode())
        set_initial_epoch(model, json.loads(epoch or b"null"))
        variables = [*model.variables, *getattr(model.optimizer, "variables", ())]
        strategy.variables.synchronise(map(plain_variable, variables))

    return on_train_begin
