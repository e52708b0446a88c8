"""Fingerprints of Python objects, which are the same for the same program in another process.

Pickles do not serve: they contain file names (of notebook cells, with the kernel's process id), line numbers, random
ids of classes and sets in an order that varies.
"""

import functools
import hashlib
import json
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ..runtime.source_files import is_users_file
from ..training.keras_api import keras_of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# Entries of a class that do not influence what it does, or refer back to it.
_SKIPPED = {"__dict__", "__weakref__", "__module__", "__firstlineno__", "__static_attributes__", "_abc_impl"}


def fingerprint(value: Any) -> str:
    """Return a hash of a value: for functions and classes of the user, of their code and of what it refers to.

    Functions and classes of installed packages count by name, Keras models with their weights.
    """
    return _digest(value, {})


def _digest(value: Any, seen: dict[int, tuple[int, Any]]) -> str:
    found = hashlib.sha256()
    for token in _tokens(value, seen):
        found.update(f"{len(token)} ".encode())
        found.update(token)
    return found.hexdigest()


def _tokens(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """Yield what makes up a value; objects that were seen before by their number, since references may be circular."""
    yield type(value).__qualname__.encode()
    if isinstance(value, _PLAIN):
        yield value if isinstance(value, bytes) else repr(value).encode()
        return
    if id(value) in seen:
        yield str(seen[id(value)][0]).encode()
        return
    if not isinstance(value, tuple | types.CodeType):  # the compiler shares equal ones, or does not
        seen[id(value)] = (len(seen), value)  # the reference keeps its id from being used again
    if isinstance(value, set | frozenset):
        yield from sorted(_digest(each, {}).encode() for each in value)
    elif isinstance(value, Mapping):
        yield str(len(value)).encode()
        for _, key in sorted((_digest(key, {}), key) for key in value) if _are_texts(value) else enumerate(value):
            yield from _tokens(key, seen)
            yield from _tokens(value[key], seen)
    else:
        parts = _parts(value)
        yield str(len(parts)).encode()
        for part in parts:
            yield from _tokens(part, seen)


def _are_texts(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) for key in value)


def _parts(value: Any) -> list[Any]:
    """Return the parts of an object that is no plain value, set or dict."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, types.CodeType):
        return _parts_of_code(value)
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, types.ModuleType):
        return [value.__name__, _source(value)]
    if isinstance(value, type):
        return _parts_of_class(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType | staticmethod | classmethod):
        return [value.__func__, getattr(value, "__self__", None)]
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, types.CellType):
        return contents_of([value])
    if keras_of(value) and hasattr(value, "get_config") and hasattr(value, "get_weights"):
        return _parts_of_model(value)
    is_numpys = type(value).__module__.partition(".")[0] == "numpy"
    if is_numpys and hasattr(value, "tobytes") and not value.dtype.hasobject:
        return [str(value.dtype), tuple(value.shape), value.tobytes()]
    return _parts_of_object(value)


def _parts_of_code(code: types.CodeType) -> list[Any]:
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return [code.co_code, getattr(code, "co_exceptiontable", b""), list(code.co_consts), *map(list, names), *counts]


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    closure = contents_of(function.__closure__ or ())
    if not is_users_file(function.__code__.co_filename):
        return [function.__module__, function.__qualname__, *closure]
    names = sorted(names_in(function.__code__) & set(function.__globals__))
    found = {name: function.__globals__[name] for name in names}
    return [function.__code__, function.__defaults__, function.__kwdefaults__, found, *closure]


def names_in(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in a function's code, and in that of its inner functions."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return set(code.co_names).union(*map(names_in, inner))


def contents_of(cells: Any) -> list[Any]:
    """Return what is in the cells of a closure."""
    found = []
    for cell in cells:
        try:
            found.append(cell.cell_contents)
        except ValueError:  # the variable has no value yet
            found.append("empty cell")
    return found


def _source(module: types.ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or not file or not is_users_file(file):
        return b""
    try:
        with open(file, "rb") as source:
            return source.read()
    except OSError:  # it is in an archive
        return b""


def _parts_of_class(cls: type) -> list[Any]:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if cls.__module__ != "__main__" and not (file and is_users_file(file)):
        return [cls.__module__, cls.__qualname__]
    return [cls.__qualname__, list(cls.__bases__), {k: v for k, v in vars(cls).items() if k not in _SKIPPED}]


def _parts_of_model(model: Any) -> list[Any]:
    compiled = model.get_compile_config() if hasattr(model, "get_compile_config") else None
    texts = [json.dumps(each, sort_keys=True, default=_named) for each in (model.get_config(), compiled)]
    return [type(model), *texts, *model.get_weights()]


def _named(value: Any) -> str:
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _parts_of_object(value: Any) -> list[Any]:
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # it cannot be pickled either; the training says so
        return []
    if isinstance(reduced, str):
        return [type(value).__module__, reduced]
    return [each if index < 3 or each is None else list(each) for index, each in enumerate(reduced)]
