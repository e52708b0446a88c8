"""Recognises the transformations of a tf.data pipeline by the names of their classes, without reading any data. Pure.

TensorFlow has renamed these classes between releases only by a leading underscore. It has no public name for what a
dataset was made from and with, so this module, and no other, uses two private ones.
"""

from typing import Any

# Apply a function to each element.
MAPS = frozenset({"MapDataset", "ParallelMapDataset"})
# Yield the elements of their input once, in the same order.
KEEP_ORDER = frozenset({"AssertCardinalityDataset", "CacheDataset", "OptionsDataset", "PrefetchDataset"})
# Yield some of the elements of their input. The first is the base class of repeat, shuffle, take, filter and others.
_KEEP_ELEMENTS = frozenset({"UnaryUnchangedStructureDataset", "AutoShardDataset"})


def kind_of(dataset: Any) -> str:
    """Return the name of the class of a dataset's last transformation, such as ``MapDataset``."""
    return type(dataset).__name__.strip("_")


def inputs_of(dataset: Any) -> list[Any]:
    """Return the datasets that a dataset's last transformation reads; [] for a source, or an object of another kind."""
    return list(getattr(dataset, "_inputs", list)())


def argument_of_batch(dataset: Any) -> tuple[int, set[str]]:
    """Return the argument of the ``batch()`` that made a dataset's elements, and the kinds of what came after it.

    The size is 0 if it cannot be known. The result of a shard's ``to_tf`` declares it in ``global_batch_size``.
    """
    kinds: set[str] = set()
    while True:
        size = getattr(dataset, "global_batch_size", getattr(dataset, "_batch_size", None))
        if size is not None:
            return int(size), kinds
        kinds.add(kind_of(dataset))
        names = {base.__name__.strip("_") for base in type(dataset).__mro__}
        inputs = inputs_of(dataset)
        if len(inputs) != 1 or not names & (MAPS | KEEP_ORDER | _KEEP_ELEMENTS):
            return 0, kinds
        (dataset,) = inputs
