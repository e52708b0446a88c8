"""How ``fit``, ``evaluate`` and ``predict`` share global batches among the workers."""

import contextvars
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

from ...data.passes import shard_states_of
from ...errors import DataError
from ..collectives import Collectives
from ..keras_api import by_name, defining_class
from .batch_parts import Part, part_of, working_on
from .probe import spans_workers

# Whether the steps of the method that runs are ours to wrap.
_knows_parts: contextvars.ContextVar[bool] = contextvars.ContextVar("knows_parts", default=False)


def global_batches(tf: Any, keras: Any) -> bool:
    """Cuts each batch of one dataset into the workers' parts.

    tf.distribute deals batches out by a rewritten dataset, which cannot say how large the whole batch was, so that a
    remainder's parts count as much as any other; it takes whole batches of a PyDataset for parts; and to learn whether
    one of the workers has rows left, it asks all of them in each step.
    """
    trainer = keras.src.backend.tensorflow.trainer
    loop, model = trainer.TFEpochIterator, trainer.TensorFlowTrainer
    loop.__init__ = _cutting(tf, loop.__init__)
    run_parts(tf)
    owner = defining_class(model, "_symbolic_build")
    owner._symbolic_build = _building(owner._symbolic_build)
    for name in ("fit", "evaluate", "predict"):
        setattr(model, name, knowing_parts(getattr(model, name), model))
    return True


# What makes the functions that a method steps with; what "predict" steps with gets rows without their place.
_MAKERS = {
    "fit": ("make_train_function", "make_test_function"),
    "evaluate": ("make_test_function",),
    "train_on_batch": ("make_train_function",),
    "test_on_batch": ("make_test_function",),
}


def knowing_parts(original: Callable[..., Any], model_class: Any) -> Callable[..., Any]:
    """A model's method, within which a step learns which part of the batch it has."""
    makers = _MAKERS.get(original.__name__, ())

    def method(call: inspect.BoundArguments) -> Any:
        model = type(call.arguments["self"])
        # A model that makes its own functions hands what comes from the dataset to its own steps.
        known = bool(makers) and all(getattr(model, each) is getattr(model_class, each) for each in makers)
        token = _knows_parts.set(known)
        try:
            return original(*call.args, **call.kwargs)
        finally:
            _knows_parts.reset(token)

    return by_name(original, method)


def run_parts(tf: Any) -> None:
    """Lets ``Strategy.run`` hand a step the batch of a Part."""
    strategy = defining_class(tf.distribute.MultiWorkerMirroredStrategy, "run")
    original = strategy.run

    @functools.wraps(original)
    def run(self: Any, fn: Callable[..., Any], args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        if len(args) != 1 or not isinstance(args[0], Part):
            return original(self, fn, args, kwargs, options)
        # Keras before 3.8 has a tf.function here, which would hold on to the first part that it was traced with.
        step = getattr(fn, "python_function", fn)

        def step_on_part(part: Part) -> Any:
            with working_on(part):
                return step(part.batch)

        return original(self, step_on_part, args, kwargs, options)

    strategy.run = run


def _building(original: Callable[..., Any]) -> Callable[..., Any]:
    def symbolic_build(call: inspect.BoundArguments) -> Any:
        batch = call.arguments.get("data_batch")
        if isinstance(batch, Part):
            call.arguments["data_batch"] = batch.batch
        return original(*call.args, **call.kwargs)

    return by_name(original, symbolic_build)


class Cutting:
    """Passes for a strategy while Keras makes an iterator, and shares the dataset out in its place."""

    def __init__(self, strategy: Any, share: Callable[[Any], Any]) -> None:
        self._strategy, self._share = strategy, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        return self._share(dataset)


def _cutting(tf: Any, original: Callable[..., None]) -> Callable[..., None]:
    def init(call: inspect.BoundArguments) -> None:
        strategy = call.arguments.get("distribute_strategy")
        if not spans_workers(tf, strategy):
            return original(*call.args, **call.kwargs)
        self = call.arguments["self"]

        def share(dataset: Any) -> Any:
            adapter = self.data_adapter
            is_users = type(adapter).__name__ == "TFDatasetAdapter"
            length = (self.steps_per_epoch, adapter.num_batches)
            return share_out(tf, strategy, dataset, *length, is_users=is_users)

        call.arguments["distribute_strategy"] = Cutting(strategy, share)
        original(*call.args, **call.kwargs)
        self._distribute_strategy = strategy
        return None

    return by_name(original, init)


def share_out(
    tf: Any,
    strategy: Any,
    dataset: Any,
    steps_per_epoch: int | None = None,
    batches: int | None = None,
    *,
    is_users: bool = False,
) -> Any:
    """What ``Strategy.experimental_distribute_dataset`` would return, of parts.

    Args:
        tf: TensorFlow.
        strategy: of several workers.
        dataset: of global batches.
        steps_per_epoch: as ``fit`` got it.
        batches: as far as Keras knows them.
        is_users: whether the program made it; only then may it ask for a way of sharing.
    """
    if shard_states_of(dataset) or not _can_be_cut(tf, dataset, is_users=is_users):
        return strategy.experimental_distribute_dataset(dataset)
    length = [steps_per_epoch, batches, int(dataset.cardinality())]
    _check_agreement(strategy, length)
    return parts_out(tf, strategy, dataset, batches is not None or length[2] != tf.data.UNKNOWN_CARDINALITY)


def parts_out(tf: Any, strategy: Any, dataset: Any, ends_together: bool) -> Any:
    """The parts of a dataset's batches that this worker's replicas have, in the form that its strategy takes.

    Args:
        tf: TensorFlow.
        strategy: of several workers.
        dataset: of global batches.
        ends_together: whether all workers know beforehand when it ends; else they ask each other in each step.
    """
    parts = _parts(tf, dataset, strategy, with_place=_knows_parts.get())
    devices = strategy.extended.worker_devices
    if ends_together and len(devices) == 1 and "CPU" in devices[0].upper():
        return parts
    distributed = strategy.distribute_datasets_from_function(lambda _: parts)
    if ends_together:
        distributed._enable_get_next_as_optional = False
    return distributed


def _can_be_cut(tf: Any, dataset: Any, *, is_users: bool) -> bool:
    if not isinstance(dataset, tf.data.Dataset):
        return False
    shapes = [getattr(spec, "shape", None) for spec in tf.nest.flatten(dataset.element_spec)]
    if any(shape is not None and shape.rank in (0, None) for shape in shapes) or all(s is None for s in shapes):
        return False  # no rows to cut
    if not is_users:
        return True
    policy, policies = dataset.options().experimental_distribute.auto_shard_policy, tf.data.experimental.AutoShardPolicy
    # AUTO would deal out files where it finds some: whole ones, and none to a worker too many, whatever is in them. Who
    # wants that asks for FILE.
    return policy in (policies.AUTO, policies.DATA)


def _check_agreement(strategy: Any, length: list[int | None]) -> None:
    found = [json.loads(each) for each in Collectives.of_workers(strategy).gather(json.dumps(length).encode())]
    if all(each == found[0] for each in found):
        return
    lengths = ", ".join(f"rank {rank}: {_length(*each)}" for rank, each in enumerate(found))
    raise DataError(
        f"The workers were given data of different lengths ({lengths}). fit, evaluate and predict take the same data "
        "on all workers, in global batches, and each worker works on its part of each batch; so some would wait for "
        "ever. Give all of them the whole data, or pass a DataFrame to run() and have each worker read its shard with "
        "to_tf()."
    )


def _length(steps_per_epoch: int | None, batches: int | None, cardinality: int) -> str:
    if steps_per_epoch:
        return f"{steps_per_epoch} steps"
    return f"{batches} batches" if batches is not None else "unknown"


def _parts(tf: Any, dataset: Any, strategy: Any, *, with_place: bool) -> Any:
    replicas, local = strategy.num_replicas_in_sync, len(strategy.extended.worker_devices)
    first = strategy.cluster_resolver.task_id * local

    def pieces(*batch: Any) -> list[Any]:
        whole = batch[0] if len(batch) == 1 and not isinstance(dataset.element_spec, tuple) else batch
        parts = [part_of(whole, first + each, replicas) for each in range(local)]
        return [part if with_place else part.batch for part in parts]

    if local == 1:
        parts = dataset.map(lambda *batch: pieces(*batch)[0])
    else:
        parts = dataset.flat_map(
            lambda *batch: functools.reduce(
                lambda left, right: left.concatenate(right), map(tf.data.Dataset.from_tensors, pieces(*batch))
            )
        )
    options = tf.data.Options()
    # Its thread makes an iterator's end, and so that of fit, up to half a minute late.
    options.autotune.enabled = False
    return parts.prefetch(2).with_options(options)
