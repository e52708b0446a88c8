"""Patches for how ``fit``, ``evaluate`` and ``predict`` divide global batches among the workers."""

from __future__ import annotations

import contextvars
import functools
import inspect
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ...data.passes import shard_states_of
from ...errors import DataError
from ..collectives import Collectives
from ..keras_api import by_name, defining_class
from ..private_names import KERAS_TRAINER
from .batch_parts import BatchPart, part_of, working_on
from .probe import spans_workers

# Whether the steps of the running method are wrapped, and so know about parts.
_knows_parts: contextvars.ContextVar[bool] = contextvars.ContextVar("knows_parts", default=False)


def global_batches(keras: ModuleType) -> bool:
    """Cut each batch of a dataset into the workers' parts.

    tf.distribute deals batches out by rewriting the dataset. The result does not know the size of the global batch, so
    the parts of a remainder count as much as any other; it takes whole batches of a PyDataset for parts; and it asks
    all workers in each step whether one of them has rows left.
    """
    trainer = KERAS_TRAINER.load()
    loop, model = trainer.TFEpochIterator, trainer.TensorFlowTrainer
    loop.__init__ = _dividing(loop.__init__)
    run_parts()
    owner = defining_class(model, "_symbolic_build")
    owner._symbolic_build = _building(owner._symbolic_build)
    for name in ("fit", "evaluate", "predict"):
        setattr(model, name, knowing_parts(getattr(model, name), model))
    return True


# The methods that make the step functions of each method. Those of "predict" get rows without their position.
_MAKERS = {
    "fit": ("make_train_function", "make_test_function"),
    "evaluate": ("make_test_function",),
    "train_on_batch": ("make_train_function",),
    "test_on_batch": ("make_test_function",),
}


def knowing_parts(original: Callable[..., Any], model_class: type) -> Callable[..., Any]:
    """Wrap a model's method so that its steps learn which part of the batch they have."""
    makers = _MAKERS.get(original.__name__, ())

    def method(call: inspect.BoundArguments) -> Any:
        model = type(call.arguments["self"])
        # A model that makes its own functions passes the elements of the dataset to its own steps.
        known = bool(makers) and all(getattr(model, maker) is getattr(model_class, maker) for maker in makers)
        token = _knows_parts.set(known)
        try:
            return original(*call.args, **call.kwargs)
        finally:
            _knows_parts.reset(token)

    return by_name(original, method)


def run_parts() -> None:
    """Let ``Strategy.run`` pass the batch of a BatchPart to a step."""
    strategy = defining_class(tf.distribute.MultiWorkerMirroredStrategy, "run")
    original = strategy.run

    @functools.wraps(original)
    def run(self: Any, fn: Callable[..., Any], args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        if len(args) != 1 or not isinstance(args[0], BatchPart):
            return original(self, fn, args, kwargs, options)
        # tf_keras passes a tf.function for jit_compile, which would keep the first part that it was traced with.
        step = getattr(fn, "python_function", fn)

        def step_on_part(part: BatchPart) -> Any:
            with working_on(part):
                return step(part.batch)

        return original(self, step_on_part, args, kwargs, options)

    strategy.run = run


def _building(original: Callable[..., Any]) -> Callable[..., Any]:
    def symbolic_build(call: inspect.BoundArguments) -> Any:
        batch = call.arguments.get("data_batch")
        if isinstance(batch, BatchPart):
            call.arguments["data_batch"] = batch.batch
        return original(*call.args, **call.kwargs)

    return by_name(original, symbolic_build)


class DividingStrategy:
    """Stands in for a strategy while Keras makes an iterator, and divides the dataset in its own way."""

    def __init__(self, strategy: tf.distribute.Strategy, divide: Callable[[Any], Any]) -> None:
        self._strategy, self._divide = strategy, divide

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        return self._divide(dataset)


def _dividing(original: Callable[..., None]) -> Callable[..., None]:
    def init(call: inspect.BoundArguments) -> None:
        strategy = call.arguments.get("distribute_strategy")
        if not spans_workers(strategy):
            return original(*call.args, **call.kwargs)
        self = call.arguments["self"]

        def divide(dataset: Any) -> Any:
            adapter = self.data_adapter
            is_users = type(adapter).__name__ == "TFDatasetAdapter"
            return divide_dataset(strategy, dataset, self.steps_per_epoch, adapter.num_batches, is_users=is_users)

        call.arguments["distribute_strategy"] = DividingStrategy(strategy, divide)
        original(*call.args, **call.kwargs)
        self._distribute_strategy = strategy
        return None

    return by_name(original, init)


def divide_dataset(
    strategy: tf.distribute.Strategy,
    dataset: Any,
    steps_per_epoch: int | None = None,
    batches: int | None = None,
    *,
    is_users: bool = False,
) -> Any:
    """Return what ``Strategy.experimental_distribute_dataset`` would return, but of parts.

    Args:
        strategy: Of several workers.
        dataset: Of global batches.
        steps_per_epoch: As passed to ``fit``.
        batches: How many there are, if Keras knows.
        is_users: Whether the program made it; only then may it choose a sharding policy.
    """
    if shard_states_of(dataset) or not _can_be_cut(dataset, is_users=is_users):
        return strategy.experimental_distribute_dataset(dataset)
    cardinality = int(dataset.cardinality())
    _check_agreement(strategy, [steps_per_epoch, batches, cardinality])
    return distribute_parts(strategy, dataset, batches is not None or cardinality != tf.data.UNKNOWN_CARDINALITY)


def distribute_parts(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset, has_known_length: bool) -> Any:
    """Return the parts of a dataset's batches that this worker's replicas have, in the form that its strategy takes.

    Args:
        strategy: Of several workers.
        dataset: Of global batches.
        has_known_length: Whether all workers know in advance when it ends; otherwise they ask each other in each step.
    """
    parts = _parts(dataset, strategy, with_position=_knows_parts.get())
    devices = strategy.extended.worker_devices
    if has_known_length and len(devices) == 1 and "CPU" in devices[0].upper():
        return parts
    distributed = strategy.distribute_datasets_from_function(lambda _: parts)
    if has_known_length:
        distributed._enable_get_next_as_optional = False
    return distributed


def _can_be_cut(dataset: Any, *, is_users: bool) -> bool:
    if not isinstance(dataset, tf.data.Dataset):
        return False
    shapes = [getattr(spec, "shape", None) for spec in tf.nest.flatten(dataset.element_spec)]
    if any(shape is not None and shape.rank in (0, None) for shape in shapes) or all(s is None for s in shapes):
        return False  # no rows to cut
    if not is_users:
        return True
    policy, policies = dataset.options().experimental_distribute.auto_shard_policy, tf.data.experimental.AutoShardPolicy
    # AUTO would deal out files if it finds some: whole ones, and none to a surplus worker, whatever they contain.
    # Programs that want that ask for FILE.
    return policy in (policies.AUTO, policies.DATA)


def _check_agreement(strategy: tf.distribute.Strategy, length: list[int | None]) -> None:
    gathered = Collectives.of_workers(strategy).gather_bytes(json.dumps(length).encode())
    found = [json.loads(each) for each in gathered]
    if all(each == found[0] for each in found):
        return
    lengths = ", ".join(f"rank {rank}: {_length(*each)}" for rank, each in enumerate(found))
    raise DataError(
        f"The workers were given data of different lengths ({lengths}). fit, evaluate and predict take the same data "
        "in global batches on all workers, and each worker processes its part of each batch; with different lengths, "
        "some would wait forever. Give all workers the whole data, or pass a DataFrame to run() and have each worker "
        "read its shard with to_tf()."
    )


def _length(steps_per_epoch: int | None, batches: int | None, cardinality: int) -> str:
    if steps_per_epoch:
        return f"{steps_per_epoch} steps"
    return f"{batches} batches" if batches is not None else "unknown"


def _parts(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy, *, with_position: bool) -> tf.data.Dataset:
    replicas, local = strategy.num_replicas_in_sync, len(strategy.extended.worker_devices)
    first = strategy.cluster_resolver.task_id * local

    def parts_of(*batch: Any) -> list[Any]:
        whole = batch[0] if len(batch) == 1 and not isinstance(dataset.element_spec, tuple) else batch
        parts = [part_of(whole, first + index, replicas) for index in range(local)]
        return [part if with_position else part.batch for part in parts]

    if local == 1:
        divided = dataset.map(lambda *batch: parts_of(*batch)[0])
    else:
        divided = dataset.flat_map(
            lambda *batch: functools.reduce(
                lambda left, right: left.concatenate(right), map(tf.data.Dataset.from_tensors, parts_of(*batch))
            )
        )
    options = tf.data.Options()
    # Its thread can delay the end of an iterator, and of fit, by up to half a minute.
    options.autotune.enabled = False
    return divided.prefetch(2).with_options(options)
