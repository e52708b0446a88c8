"""Changes modules as soon as a program imports them, without importing them itself."""

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import Any


def call_after_import(names: Collection[str], change: Callable[[ModuleType], object]) -> importlib.abc.MetaPathFinder:
    """Call a function with each of the named modules once it has been imported.

    Args:
        names: Full names of the modules.
        change: The function. If it raises, the import fails.

    Returns:
        A finder in ``sys.meta_path``; remove it from there to stop the calls.
    """
    finder = _Finder(names, change)
    sys.meta_path.insert(0, finder)
    return finder


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules where the other finders do."""

    def __init__(self, names: Collection[str], change: Callable[[ModuleType], object]) -> None:
        self._names, self._change = names, change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._names:
            return None
        # Finders of this class would ask each other forever. The first one applies the changes of all.
        ours = [each for each in sys.meta_path if isinstance(each, _Finder)]
        others = [each for each in sys.meta_path if each not in ours and hasattr(each, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            changes = [each._change for each in ours if fullname in each._names]
            loader.exec_module = functools.partial(_execute, loader.exec_module, changes)
        return spec


def _execute(
    execute: Callable[[ModuleType], object], changes: Sequence[Callable[[ModuleType], object]], module: ModuleType
) -> None:
    execute(module)
    for change in changes:
        change(module)
