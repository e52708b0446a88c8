"""Finds what models, optimizers and callbacks hold in their attributes.

Each object has an expression, such as ``net.optimizer`` or ``optimizers['generator'].inner``, which is the same in
every process that runs the same program.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple


class Held(NamedTuple):
    """An object that another one holds.

    Attributes:
        path: The expression for the object.
        value: The object.
        owner: The object of whose attribute it is a part.
    """

    path: str
    value: Any
    owner: Any


def held_objects(root: Any, wanted: tuple[type, ...], opened: tuple[type, ...]) -> Iterator[Held]:
    """Yield each object of the wanted types once, by its shortest expression.

    Args:
        root: The object whose attributes to search, with lists, tuples and dicts in them.
        wanted: The types of the objects to yield.
        opened: The types of the objects whose attributes to search as well.
    """
    seen: dict[int, Any] = {id(root): root}  # the objects are kept, because an id may be used again
    waiting = deque([("", root)])
    while waiting:
        prefix, owner = waiting.popleft()
        for name, attribute in sorted(vars(owner).items(), key=_public_first):
            for place, value in _leaves(attribute, (*wanted, *opened), seen):
                path = f"{prefix}{name}{place}"
                if isinstance(value, wanted):
                    yield Held(path, value, owner)
                if isinstance(value, opened):
                    waiting.append((f"{path}.", value))


def _public_first(attribute: tuple[str, Any]) -> tuple[bool, str]:
    """Keras also lists objects in private attributes, whose names depend on its release."""
    return attribute[0].startswith("_"), attribute[0]


def _leaves(value: Any, types: tuple[type, ...], seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    is_container = isinstance(value, dict | list | tuple)
    if id(value) in seen or not (is_container or isinstance(value, types)):
        return
    seen[id(value)] = value
    if not is_container:
        yield "", value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for position, (key, each) in enumerate(list(items)):
        for place, leaf in _leaves(each, types, seen):
            # Other keys may have an address in their text, which differs between processes.
            yield f"[{repr(key) if isinstance(key, str | int | tuple) else position}]{place}", leaf
