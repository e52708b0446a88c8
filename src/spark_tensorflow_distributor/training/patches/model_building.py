"""Models that are built when they see their first batch."""

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .probe import probe_strategy, spans_workers


def symbolic_build(tf: Any, keras: Any) -> bool:
    """Builds a model from the shapes and types of its data.

    Keras takes a batch for that, and averages it over the workers, which cannot be done with what differs in shape.
    Also the batch is gone then: a generator's first one is not trained, and a shuffled dataset is in its second order.
    """
    trainer_class = keras.src.backend.tensorflow.trainer.TensorFlowTrainer
    original = trainer_class._maybe_symbolic_build
    if not _averages_batches(tf, original):
        return False

    @functools.wraps(original)
    def maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> Any:
        strategy = self._distribute_strategy
        if iterator is None or not spans_workers(tf, strategy):
            return original(self, iterator=iterator, data_batch=data_batch)
        with strategy.scope():
            return self._symbolic_build(data_batch=_shapes(tf, iterator._distributed_dataset.element_spec))

    trainer_class._maybe_symbolic_build = maybe_symbolic_build
    return True


def _shapes(tf: Any, spec: Any) -> Any:
    def of_replica(each: Any) -> Any:
        each = getattr(each, "_value_specs", (each,))[0]  # of a distributed value: that of its first replica
        return each if hasattr(each, "shape") and hasattr(each, "dtype") else None

    return tf.nest.map_structure(of_replica, spec)


class _Epoch:
    """An epoch as Keras walks it: by iteration or by ``enumerate_epoch()``, over tuples that end in batches."""

    def __init__(self, steps: Callable[[], Iterable[Any]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[Any]:
        return iter(self._steps())

    enumerate_epoch = __iter__


def _averages_batches(tf: Any, maybe_symbolic_build: Callable[..., None]) -> bool:
    """Whether the method reduces a batch over the workers; tried with stand-ins for model, strategy and data."""

    class PerReplica(tf.distribute.DistributedValues):  # type: ignore[misc]
        values = ("local",)

    for numbers in ((0, 0), (0,)):  # as in Keras 3.12 and later, and before
        strategy = probe_strategy(tf)
        model = types.SimpleNamespace(_distribute_strategy=strategy, distribute_strategy=strategy)
        built: list[Any] = []
        model._symbolic_build = lambda *, data_batch, built=built: built.append(data_batch)
        epoch = _Epoch(lambda numbers=numbers: [(*numbers, iter([(PerReplica(), PerReplica())]))])  # type: ignore[misc]
        with contextlib.suppress(ValueError):  # it unpacks tuples of another length
            maybe_symbolic_build(model, iterator=epoch)
        if strategy.axes:
            return True
        if built == [("local", "local")]:
            return False
    raise RuntimeError("the batch that a model is built from cannot be followed")
