"""How ``fit``, ``evaluate`` and ``predict`` share global batches among the workers."""

import contextvars
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

from ...errors import DataError
from ..batches import feeds_of
from ..exchange import Exchange
from ..keras import by_name, defining_class
from .parts import Part, part_of, working_on
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
    strategy = defining_class(tf.distribute.MultiWorkerMirroredStrategy, "run")
    strategy.run = _running_parts(tf, strategy.run)
    owner = defining_class(model, "_symbolic_build")
    owner._symbolic_build = _building(owner._symbolic_build)
    for name in ("fit", "evaluate", "predict"):
        setattr(model, name, _knowing_parts(getattr(model, name), name, model))
    return True


def _knowing_parts(original: Callable[..., Any], name: str, model_class: Any) -> Callable[..., Any]:
    makers = {"fit": ("make_train_function", "make_test_function"), "evaluate": ("make_test_function",)}.get(name, ())

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


def _running_parts(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: Any, fn: Callable[..., Any], args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        if len(args) != 1 or not isinstance(args[0], Part):
            return original(self, fn, args, kwargs, options)
        # Keras before 3.8 has a tf.function here, which would hold on to the first part that it was traced with.
        step = getattr(fn, "python_function", fn)

        def step_on_part(part: Part) -> Any:
            with working_on(part):
                return step(part.batch)

        return original(self, tf.autograph.experimental.do_not_convert(step_on_part), args, kwargs, options)

    return run


def _building(original: Callable[..., Any]) -> Callable[..., Any]:
    def symbolic_build(call: inspect.BoundArguments) -> Any:
        batch = call.arguments.get("data_batch")
        if isinstance(batch, Part):
            call.arguments["data_batch"] = batch.batch
        return original(*call.args, **call.kwargs)

    return by_name(original, symbolic_build)


class _Cutting:
    """Passes for the strategy while Keras makes an epoch's iterator, and shares the dataset out in its place."""

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
        call.arguments["distribute_strategy"] = _Cutting(strategy, lambda data: _shared(tf, self, strategy, data))
        original(*call.args, **call.kwargs)
        self._distribute_strategy = strategy
        return None

    return by_name(original, init)


def _shared(tf: Any, loop: Any, strategy: Any, dataset: Any) -> Any:
    kind = type(loop.data_adapter).__name__
    if feeds_of(dataset) or not _can_be_cut(tf, dataset, kind):
        return strategy.experimental_distribute_dataset(dataset)
    length = [loop.steps_per_epoch, loop.data_adapter.num_batches, int(dataset.cardinality())]
    ends_together = _agree(strategy, length) and (length[1] is not None or length[2] != tf.data.UNKNOWN_CARDINALITY)
    parts = _parts(tf, dataset, strategy, with_place=_knows_parts.get())
    devices = strategy.extended.worker_devices
    if ends_together and len(devices) == 1 and "CPU" in devices[0].upper():
        return parts
    distributed = strategy.distribute_datasets_from_function(lambda _: parts)
    if ends_together:
        distributed._enable_get_next_as_optional = False
    return distributed


def _can_be_cut(tf: Any, dataset: Any, kind: str) -> bool:
    if not isinstance(dataset, tf.data.Dataset):
        return False
    shapes = [getattr(spec, "shape", None) for spec in tf.nest.flatten(dataset.element_spec)]
    if any(shape is not None and shape.rank in (0, None) for shape in shapes) or all(s is None for s in shapes):
        return False  # no rows to cut
    if kind != "TFDatasetAdapter":
        return True
    policy, policies = dataset.options().experimental_distribute.auto_shard_policy, tf.data.experimental.AutoShardPolicy
    # AUTO would deal out files where it finds some: whole ones, and none to a worker too many, whatever is in them. Who
    # wants that asks for FILE.
    return policy in (policies.AUTO, policies.DATA)


def _agree(strategy: Any, length: list[int | None]) -> bool:
    resolver = strategy.cluster_resolver
    workers = strategy.extended._num_workers
    exchange = Exchange(strategy, resolver.task_id, workers)
    found = [json.loads(each) for each in exchange.gather(json.dumps(length).encode())]
    if all(each == found[0] for each in found):
        return True
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
