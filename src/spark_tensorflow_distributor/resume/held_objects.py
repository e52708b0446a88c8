"""Finds what models, optimizers and callbacks hold in their attributes.

Each object has an expression, such as ``net.optimizer`` or ``optimizers['generator'].inner``, which is the same in
every process that runs the same program.
"""

from collections import deque
from collections.abc import Iterable, Iterator
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


def held_objects(
    root: Any, wanted: tuple[type, ...], opened: tuple[type, ...], without: Iterable[Any] = ()
) -> Iterator[Held]:
    """Yield each object of the wanted types once, by its shortest expression.

    Args:
        root: The object whose attributes to search, with lists, tuples and dicts in them.
        wanted: The types of the objects to yield.
        opened: The types of the objects whose attributes to search as well.
        without: Objects to leave out, with what they hold.
    """
    search = _Search(wanted, opened, (root, *without))
    waiting = deque([("", root)])
    while waiting:
        prefix, owner = waiting.popleft()
        attributes = [each for each in vars(owner).items() if search.kind_of(each[1])]
        for name, attribute in sorted(attributes, key=_public_first):
            for subscripts, value in search.leaves(attribute):
                path = f"{prefix}{name}{subscripts}"
                if isinstance(value, wanted):
                    yield Held(path, value, owner)
                if isinstance(value, opened):
                    waiting.append((f"{path}.", value))


def _public_first(attribute: tuple[str, Any]) -> tuple[bool, str]:
    """Keras also lists objects in private attributes, whose names depend on its release."""
    return attribute[0].startswith("_"), attribute[0]


class _Search:
    def __init__(self, wanted: tuple[type, ...], opened: tuple[type, ...], known: Iterable[Any]) -> None:
        self._types = (*wanted, *opened)
        # The objects are kept, because an id may be used again.
        self._seen: dict[int, Any] = {id(each): each for each in known}
        # A large model holds tens of thousands of objects, of few types.
        self._kinds: dict[type, str] = {}

    def leaves(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield the objects of these types in an attribute, with the subscripts that lead to them."""
        kind = self.kind_of(value)
        if not kind or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind == "leaf":
            yield "", value
            return
        items = value.items() if kind == "dict" else enumerate(value)
        for position, (key, each) in enumerate(list(items)):
            if self.kind_of(each):
                for subscripts, leaf in self.leaves(each):
                    # Other keys may have an address in their text, which differs between processes.
                    yield f"[{repr(key) if isinstance(key, str | int) else position}]{subscripts}", leaf

    def kind_of(self, value: Any) -> str:
        """Return "leaf" for an object of these types, "dict" or "list" for what may contain one, or ""."""
        kind = self._kinds.get(type(value))
        if kind is None:
            is_leaf, is_dict = isinstance(value, self._types), isinstance(value, dict)
            kind = "leaf" if is_leaf else "dict" if is_dict else "list" if isinstance(value, list | tuple) else ""
            self._kinds[type(value)] = kind
        return kind
