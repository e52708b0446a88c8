"""Caches the models that a Python worker of Spark used last, because Spark reuses the worker for further tasks."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# A pipeline may alternate between two models of one kind; more would fill the memory of the executors.
_MAX_MODELS = 2


class ModelCache(Generic[Value]):
    """Keeps one value for each of the models that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """Return the value of a model, which is loaded unless it is kept.

        Args:
            key: Identifies the model.
            load: Returns the value. The least recently used model is dropped before this is called, because both may
                not fit into memory.
        """
        if key not in self._kept:
            while len(self._kept) >= _MAX_MODELS:
                self._kept.popitem(last=False)
                gc.collect()  # layers of Keras refer to each other in cycles
            self._kept[key] = load()
        self._kept.move_to_end(key)
        return self._kept[key]
