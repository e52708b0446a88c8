"""Makes ``mlflow.autolog()`` in a training function record a run once, without waiting for other ranks.

All ranks call it, so each would record the run; and at the end of ``fit``, MLflow calls ``predict`` to find out the
model's signature, in which all ranks would have to take part.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULES = ("mlflow.tensorflow", "mlflow.keras")


def record_once(is_chief: bool) -> None:
    """Adapt ``autolog`` of MLflow's modules for Keras as soon as the training function imports them."""
    sys.meta_path.insert(0, _Finder(is_chief))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MLflow's modules where the other finders do."""

    def __init__(self, is_chief: bool) -> None:
        self._is_chief = is_chief

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = _then(loader.exec_module, functools.partial(adapt, is_chief=self._is_chief))
        return spec


def _then(first: Any, second: Any) -> Any:
    def both(module: ModuleType) -> None:
        first(module)
        second(module)

    return both


def adapt(module: Any, *, is_chief: bool) -> None:
    """Replace ``autolog`` of one module: off on other ranks, and without ``predict`` on the chief."""
    original = getattr(module, "autolog", None)
    if original is None:
        return
    changes = {"log_model_signatures": False, "log_input_examples": False} if is_chief else {"disable": True}

    @functools.wraps(original)
    def autolog(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, **changes})

    module.autolog = autolog
