"""What Keras lacks in a worker of a group of several.

Keras 3 cannot ``fit`` under ``tf.distribute.MultiWorkerMirroredStrategy`` with several workers. A fault is mended where
its behaviour shows it: a release without it stays as it is, and one of a kind not known here too, with a warning.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_log = logging.getLogger(__name__)


def mend_keras() -> list[str]:
    """Mends what keeps Keras 3 from training right under several workers, in this process, where it needs mending.

    To be called before the first model is built; it takes milliseconds and starts neither TensorFlow's eager context
    nor a device. It does nothing for tf_keras (also if ``TF_USE_LEGACY_KERAS`` selects it), for Keras 2, for a backend
    other than TensorFlow, without Keras, and the second time.

    Returns:
        What was mended, for the log: ``"symbolic_build"`` (batches of all workers are averaged to learn their shapes,
        which fails), ``"reduce_per_replica"`` (scalar logs are reduced along an axis that they do not have),
        ``"metric_variables"`` (Keras before 3.10: wrong sums over the workers) and ``"loss_scaling"`` (Keras before
        3.8: gradients too large by the number of workers).
    """
    keras = None if _legacy_selected() else _package("keras")
    if keras is None or keras.__version__.startswith("2.") or keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    mended = []
    for mend in (_mend_symbolic_build, _mend_reduce_per_replica, _mend_metric_variables, _mend_loss_scaling):
        name = mend.__name__.removeprefix("_mend_")
        try:
            if mend(tf, keras):
                mended.append(name)
        except Exception as error:  # Any at all: a probe walks through code that nobody promised to keep.
            _log.warning(
                f"Keras {keras.__version__} has a {name} of an unknown kind ({error!r}); it was left as it is. If "
                "training fails with several workers, use another release, or tf_keras with TF_USE_LEGACY_KERAS=1."
            )
    return mended


def quiet_auto_verbose(is_chief: bool) -> None:
    """Makes ``verbose="auto"`` mean 2 on the chief and 0 elsewhere, for fit, evaluate and predict in this process.

    A worker's output is no terminal: there Keras takes "auto" for 1, and prints many lines an epoch on every rank.
    Explicit values keep their meaning. It applies to Keras 3 and tf_keras, as far as ``keras_packages`` finds them.
    """
    for package in keras_packages():
        for name in ("fit", "evaluate", "predict"):
            owner = defining_class(package.Model, name)
            setattr(owner, name, _with_auto_verbose(getattr(owner, name), 2 if is_chief else 0))


def _with_auto_verbose(original: Callable[..., Any], meant: int) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)  # The caller's mistake: Keras has the words for it.
        if bound.arguments.get("verbose", "auto") == "auto":
            bound.arguments["verbose"] = meant
        return original(*bound.args, **bound.kwargs)

    return method


def keras_packages() -> list[Any]:
    """The Keras packages that this process may train with: that of ``tf.keras``, and the other one if it is loaded.

    The first is imported if it is installed, which costs nothing after ``import tensorflow``.
    """
    chosen, other = ("tf_keras", "keras") if _legacy_selected() else ("keras", "tf_keras")
    return [package for package in (_package(chosen), sys.modules.get(other)) if hasattr(package, "Model")]


def defining_class(model_class: type, method: str) -> Any:
    """The class whose body has the method that ``model_class`` inherits: replaced there, it is for all models."""
    return next(base for base in model_class.__mro__ if method in vars(base))


def _legacy_selected() -> bool:
    return os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")  # what TensorFlow accepts


def _package(name: str) -> Any:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception:  # A broken Keras must not end a program that may never use it.
        _log.warning("%s is installed but cannot be imported", name, exc_info=True)
        return None


def _mend_symbolic_build(tf: Any, keras: Any) -> bool:
    """Builds a model from this worker's own batch instead of an average: only shapes and types are read from it."""
    trainer_class = keras.src.backend.tensorflow.trainer.TensorFlowTrainer
    original = trainer_class._maybe_symbolic_build
    if not _averages_batches(tf, original):
        return False

    @functools.wraps(original)
    def maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> Any:
        strategy = self._distribute_strategy
        if iterator is None or not _spans_workers(tf, strategy):
            return original(self, iterator=iterator, data_batch=data_batch)

        def local(value: Any) -> Any:
            return strategy.experimental_local_results(value)[0]  # of a value that is not distributed, itself

        def steps() -> Iterator[tuple[Any, ...]]:
            for *numbers, batches in iterator if hasattr(iterator, "__iter__") else iterator.enumerate_epoch():
                yield (*numbers, (tf.nest.map_structure(local, batch) for batch in batches))

        result = original(self, iterator=_Epoch(steps), data_batch=data_batch)
        if not hasattr(iterator, "reset"):
            # Keras 3.5 and 3.6 would go on from here: with steps_per_epoch, training would miss this batch.
            iterator._current_iterator = None
        return result

    trainer_class._maybe_symbolic_build = maybe_symbolic_build
    return True


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
        strategy = _probe_strategy(tf)
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


def _mend_reduce_per_replica(tf: Any, keras: Any) -> bool:
    """Averages logs over the workers as they are. Keras goes along their first axis, too, which only vectors have."""
    trainer, strategy = keras.src.backend.tensorflow.trainer, _probe_strategy(tf)
    with tf.Graph().as_default():  # a tensor outside of a graph would start the eager context
        trainer.reduce_per_replica(tf.compat.v1.placeholder(tf.float32, ()), strategy, "mean")
    if not strategy.axes:
        raise RuntimeError("it does not use Strategy.reduce")
    if strategy.axes == [None]:
        return False
    original = trainer.reduce_per_replica

    @functools.wraps(original)
    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        if reduction not in ("auto", "mean", "sum") or not _spans_workers(tf, strategy):
            return original(values, strategy, reduction)
        return _reduce_over_workers(tf, values, strategy, "SUM" if reduction == "sum" else "MEAN")

    trainer.reduce_per_replica = reduce_per_replica
    return True


def _reduce_over_workers(tf: Any, values: Any, strategy: Any, operation: str) -> Any:
    """Reduces the tensors of a structure; scalars of a type go together, as each collective is a round trip."""
    leaves = tf.nest.flatten(values)
    scalars: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            scalars.setdefault(leaf.dtype, []).append(index)
        elif isinstance(leaf, (tf.Tensor, tf.distribute.DistributedValues)):
            leaves[index] = strategy.reduce(operation, leaf, axis=None)
    for indices in scalars.values():
        reduced = strategy.reduce(operation, tf.stack([leaves[index] for index in indices]), axis=None)
        for index, value in zip(indices, tf.unstack(reduced, num=len(indices)), strict=True):
            leaves[index] = value
    return tf.nest.pack_sequence_as(values, leaves)


def _mend_metric_variables(tf: Any, keras: Any) -> bool:
    """Lets metrics add up what their worker saw, and sum that over the workers when read, as Keras 3.10 does.

    Keras 3.7 to 3.9 sum the running totals in every step, which counts early steps again and again. In 3.5 and 3.6
    each worker has the metrics of its own part, so that an EarlyStopping may stop some workers and not the others.
    """
    asked = set()  # what Keras itself asks for

    def on_read(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        asked.add(kwargs.get("synchronization"))
        kwargs["synchronization"] = tf.VariableSynchronization.ON_READ
        if getattr(kwargs.get("aggregation"), "name", "NONE") == "NONE":
            kwargs["aggregation"] = tf.VariableAggregation.SUM
        return next_creator(**kwargs)

    with tf.Graph().as_default(), tf.variable_creator_scope(on_read):
        keras.metrics.Sum()
    if asked == {tf.VariableSynchronization.ON_READ}:
        return False
    owner = defining_class(keras.metrics.Metric, "add_variable")
    original = owner.add_variable

    @functools.wraps(original)
    def add_variable(*args: Any, **kwargs: Any) -> Any:
        with tf.variable_creator_scope(on_read):
            variable = original(*args, **kwargs)
        if getattr(variable, "_value", variable) is None:  # in a symbolic build, after which Keras calls for the value
            initialize = variable._deferred_initialize

            def deferred_initialize() -> None:
                del variable._deferred_initialize
                with tf.variable_creator_scope(on_read):
                    initialize()

            variable._deferred_initialize = deferred_initialize
        return variable

    owner.add_variable = add_variable
    return True


def _mend_loss_scaling(tf: Any, keras: Any) -> bool:
    """Divides the loss by the number of replicas before gradients are taken, which are then summed over them.

    A custom ``train_step`` without ``optimizer.scale_loss`` has to do so by itself in these releases. The version tells
    here, since scaling twice would go unnoticed, and releases of the past stay as they are.
    """

    def dividing(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def scale_loss(self: Any, loss: Any) -> Any:
            loss = original(self, loss)
            return loss / tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)

        return scale_loss

    if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 8):
        return False
    mended = False
    for optimizer in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
        owner = defining_class(optimizer, "scale_loss")
        if not hasattr(owner.scale_loss, "__wrapped__"):
            owner.scale_loss, mended = dividing(owner.scale_loss), True
    return mended


def _spans_workers(tf: Any, strategy: Any) -> bool:
    """Whether the strategy is of several workers: it then has more replicas than devices here."""
    known = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return known and bool(strategy.num_replicas_in_sync > len(strategy.extended.worker_devices))


def _probe_strategy(tf: Any) -> Any:
    """Passes for a strategy of two workers, and notes the axis of each reduction; a real one would wait for peers."""

    class ProbeStrategy(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
        num_replicas_in_sync = 2
        scope = contextlib.nullcontext
        extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True, worker_devices=("/device:CPU:0",))

        def __init__(self) -> None:
            self.axes: list[Any] = []

        def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
            self.axes.append(axis)
            return value

        def experimental_local_results(self, value: Any) -> Any:
            return getattr(value, "values", (value,))

    return ProbeStrategy()
