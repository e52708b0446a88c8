"""Files that a program writes on all workers at once."""

import contextlib
import contextvars
import functools
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np

from ..collectives import Collectives
from .layer_state import average_state
from .probe import spans_workers

_is_silent: contextvars.ContextVar[bool] = contextvars.ContextVar("is_silent", default=False)


@contextlib.contextmanager
def _writing_nothing() -> Iterator[None]:
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


def saved_models(tf: Any, keras: Any) -> bool:
    """Writes a model's file under another name first, and then renames it; and lets the chief save alone.

    All workers call ``model.save("model.keras")``, and where they share a folder, they write into one file at once.
    Where the chief alone saves or loads, Keras makes an optimizer for comparison, whose variables then wait for the
    others.
    """
    library = keras.src.saving.saving_lib
    name = "get_attr_skipset" if hasattr(library, "get_attr_skipset") else "get_attr_skiplist"  # before Keras 3.6
    setattr(library, name, _outside_of_a_strategy(getattr(library, name)))
    hdf5 = keras.src.legacy.saving.legacy_h5_format
    for module, name in ((library, "save_model"), (library, "save_weights_only"), (hdf5, "save_model_to_hdf5")):
        setattr(module, name, at_once(getattr(module, name)))
    return True


def _outside_of_a_strategy(original: Callable[[str], Any]) -> Callable[[str], Any]:
    known: dict[str, Any] = {}

    @functools.wraps(original)
    def get_attr_skipset(obj_type: str) -> Any:
        if obj_type not in known:
            # A strategy's scope is that of a thread.
            thread = threading.Thread(target=lambda: known.__setitem__(obj_type, original(obj_type)))
            thread.start()
            thread.join()
        return known[obj_type] if obj_type in known else original(obj_type)

    return get_attr_skipset


def at_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """What saves a model into a file, in such a way that the file is there as a whole or not at all."""

    @functools.wraps(original)
    def save(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_silent.get():
            return None
        path = os.fspath(filepath) if isinstance(filepath, str | os.PathLike) else ""
        whole_file = str(path).endswith((".keras", ".h5", ".hdf5")) and "://" not in str(path)
        if not whole_file or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            return original(model, filepath, *args, **kwargs)
        folder, name = os.path.split(os.path.abspath(path))
        beside = os.path.join(folder, f".{uuid.uuid4().hex}-{name}")
        try:
            result = original(model, beside, *args, **kwargs)
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(beside)
        return result

    return save


def callbacks(tf: Any, keras: Any) -> bool:
    """Lets Keras' callbacks write on the chief only.

    All workers have the same model and the same logs; they would write the same files at once, and one that resumes
    would resume alone where the others cannot see its folder.
    """
    all_of_them = keras.callbacks
    all_of_them.ModelCheckpoint._save_model = _saving_once(tf, all_of_them.ModelCheckpoint._save_model)
    backup = all_of_them.BackupAndRestore
    backup._save_model = _saving_once(tf, backup._save_model)
    backup.on_train_begin = _restoring_together(tf, backup.on_train_begin)
    backup.on_train_end = on_the_chief(tf, backup.on_train_end)
    for callback in (all_of_them.CSVLogger, all_of_them.TensorBoard):
        for name in [name for name in vars(callback) if name.startswith("on_") or name == "set_model"]:
            setattr(callback, name, on_the_chief(tf, getattr(callback, name)))
    return True


def _is_other(tf: Any, callback: Any, model: Any = None) -> bool:
    """Whether the callback's model is trained by several workers, and this one is not their chief."""
    model = model or callback.model
    strategy = getattr(model, "distribute_strategy", None)
    return spans_workers(tf, strategy) and strategy.cluster_resolver.task_id != 0  # type: ignore[union-attr]


def on_the_chief(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """A callback's method, that does nothing on the other workers."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if original.__name__ == "set_model":
            (model,) = (*args, *kwargs.values())
            if _is_other(tf, self, model):
                self._model = model
                return None
        elif _is_other(tf, self):
            return None
        return original(self, *args, **kwargs)

    return method


def _saving_once(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        average_state(tf, self.model)
        if not _is_other(tf, self):
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


def _restoring_together(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def on_train_begin(self: Any, logs: Any = None) -> None:
        model = self.model
        strategy = model.distribute_strategy
        if not spans_workers(tf, strategy):
            original(self, logs)
            return
        is_chief = strategy.cluster_resolver.task_id == 0
        data = None
        if model.optimizer is not None and not model.optimizer.built:  # which would be made on the chief only
            model.optimizer.build(model.trainable_variables)
        if is_chief:
            before = model._initial_epoch
            original(self, logs)
            if model._initial_epoch != before:
                data = _pack(_variables(model), model._initial_epoch)
        data = Collectives.of_workers(strategy).broadcast(data)
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
