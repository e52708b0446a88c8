"""Patches for models that are built when they see their first batch."""

import functools
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..private_names import KERAS_TRAINER
from .probe import probe_strategy, spans_workers


def symbolic_build(keras: ModuleType) -> bool:
    """Build a model from the shapes and types of its data.

    Keras takes a batch for that and averages it over the workers, which fails if shapes differ. It also consumes the
    batch: a generator's first one is not trained, and a shuffled dataset continues in its second order.
    """
    trainer_class = KERAS_TRAINER.load().TensorFlowTrainer
    original = trainer_class._maybe_symbolic_build
    if not _averages_batches(original):
        return False

    @functools.wraps(original)
    def maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> Any:
        strategy = self._distribute_strategy
        if iterator is None or not spans_workers(strategy):
            return original(self, iterator=iterator, data_batch=data_batch)
        with strategy.scope():
            return self._symbolic_build(data_batch=_shapes(iterator._distributed_dataset.element_spec))

    trainer_class._maybe_symbolic_build = maybe_symbolic_build
    return True


def _shapes(spec: Any) -> Any:
    def local_spec(leaf: Any) -> Any:
        leaf = getattr(leaf, "_value_specs", (leaf,))[0]  # a distributed value has one for each replica
        return leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else None

    return tf.nest.map_structure(local_spec, spec)


def _averages_batches(maybe_symbolic_build: Callable[..., None]) -> bool:
    """Return whether the method reduces a batch over the workers; tried with stand-ins for model, strategy and data."""

    class PerReplica(tf.distribute.DistributedValues):  # type: ignore[misc]
        values = ("local",)

    for numbers in ((0, 0), (0,)):  # of steps, as in Keras 3.12 and later, and before
        strategy = probe_strategy()
        model = types.SimpleNamespace(_distribute_strategy=strategy, distribute_strategy=strategy)
        built: list[Any] = []
        model._symbolic_build = lambda *, data_batch, built=built: built.append(data_batch)
        epoch = [(*numbers, iter([(PerReplica(), PerReplica())]))]
        try:
            maybe_symbolic_build(model, iterator=epoch)
        except ValueError:  # it unpacks tuples of another length
            pass
        if strategy.axes:
            return True
        if built == [("local", "local")]:
            return False
    raise RuntimeError("it is unclear which batch a model is built from")
