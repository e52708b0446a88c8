"""The hooks that make a model's methods run on a replica."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..errors import ConfigurationError
from .calls_alone import by_itself, without_strategy
from .fit_hooks import MethodCall, only
from .keras_api import given_callbacks, keras_of, optimizer_variables
from .keras_step import logs_are_read, saved_by_all
from .own_rows import has_marked_rows, rows_of_worker
from .private_names import KERAS_TRAINER
from .replica import ReplicaStrategy, replica_strategy
from .replica_step import in_method
from .variable_sync import plain_variable

# Models whose variables have been synchronised before their first train_on_batch or test_on_batch.
synchronised_models: weakref.WeakSet[Any] = weakref.WeakSet()


@contextlib.contextmanager
def as_replica(call: MethodCall) -> Iterator[None]:
    """Make the steps of a method run as steps of replicas, on variables that are the same on all workers."""
    strategy = replica_strategy(call.model.distribute_strategy)
    if strategy is None:
        yield
        return
    if call.name == "predict_on_batch":  # each worker predicts rows of its own, whenever it likes
        with by_itself(call.model):
            yield
        return
    _refuse_fixed_batches(call, strategy.collectives.world_size)
    if call.name in ("fit", "evaluate", "predict") and call.outer is None:
        strategy.variables.synchronise(model_variables(call.model))
    elif call.name in ("train_on_batch", "test_on_batch") and call.model not in synchronised_models:
        synchronised_models.add(call.model)
        strategy.variables.synchronise(model_variables(call.model))
    makes_own = _makes_own_functions(call)
    divides_batches = not has_marked_rows(call.arguments.get("x"))
    with (
        without_strategy(call.model, strategy),
        in_method(call.name, gets_parts=not makes_own, divides_batches=divides_batches),
    ):
        yield
    if call.name == "fit" and call.outer is None:
        strategy.collectives.wait()  # by now, callbacks have written their files on the chief


def _refuse_fixed_batches(call: MethodCall, replicas: int) -> None:
    """Reject a model that takes batches of one size only, since a replica has only a part of a batch.

    Raises:
        ConfigurationError: If the model's inputs have a fixed batch size.
    """
    shapes = [getattr(each, "shape", None) for each in tf.nest.flatten(getattr(call.model, "inputs", None) or [])]
    for size in {shape[0] for shape in shapes if shape is not None and len(shape)}:
        if size is not None and size >= replicas:
            raise ConfigurationError(
                f"The model's inputs have a fixed batch size of {size}. On {replicas} workers, each one computes its "
                "part of a batch, which has fewer rows. Create the inputs without batch_shape and batch_size, so that "
                "the batch dimension is None. A stateful RNN needs a fixed batch size, because its state belongs to "
                "positions in the batch: train it with num_slots=1."
            )


def _makes_own_functions(call: MethodCall) -> bool:
    """Return whether a model iterates over its data itself, and therefore expects the batches of its dataset."""
    return _overrides(call, "make_train_function", "make_test_function", "make_predict_function")


def model_variables(model: Any) -> list[tf.Variable]:
    """Return the TensorFlow variables of a model and of its optimizer."""
    variables = [*_built_variables(model), *optimizer_variables(getattr(model, "optimizer", None))]
    return [each for each in map(plain_variable, variables) if isinstance(each, tf.Variable)]


def _built_variables(model: Any) -> list[Any]:
    try:
        return list(model.variables)
    except ValueError:  # a tf_keras model that is not built yet
        return []


@contextlib.contextmanager
def own_rows_of_workers(call: MethodCall) -> Iterator[None]:
    """Rebatch datasets whose options say that each worker reads rows of its own."""
    strategy = replica_strategy(call.model.distribute_strategy)
    if strategy is not None:
        for name in ("x", "validation_data"):
            data = call.arguments.get(name)
            if isinstance(data, tf.data.Dataset) and not has_marked_rows(data):
                call.arguments[name] = rows_of_worker(data, strategy.collectives)
    yield


@only("fit", "evaluate", "train_on_batch", "test_on_batch")
@contextlib.contextmanager
def noting_readers(call: MethodCall) -> Iterator[None]:
    """Make steps combine their logs over the workers only if the logs are read.

    Combining them takes one collective per step, which can account for a third of a small step. At the end of an epoch,
    logs are always combined. The methods for single batches return the logs of a step, so these are always read, even
    within a callback of a ``fit`` whose own logs are not.
    """
    strategy = replica_strategy(call.model.distribute_strategy)
    if strategy is None or call.is_validation:
        yield
        return
    is_batch = call.name.endswith("on_batch")
    are_read, is_saved_by_all = (True, saved_by_all.get()) if is_batch else _agreed(call, strategy)
    are_read = are_read or _computes_own_logs(call)
    # A method that a callback of fit calls shares its graphs with fit.
    are_read = are_read or (call.outer is not None and logs_are_read.get())
    tokens = logs_are_read.set(are_read), saved_by_all.set(is_saved_by_all)
    try:
        yield
    finally:
        logs_are_read.reset(tokens[0])
        saved_by_all.reset(tokens[1])


def _computes_own_logs(call: MethodCall) -> bool:
    """Return whether a model's steps may return logs that are not results of its metrics.

    Results of metrics can be read later, so only other logs must be combined in each step. A model that makes its own
    functions also has a single graph for all calls.
    """
    steps = "train_step", "test_step", "compute_metrics", "get_metrics_result"
    return _overrides(call, *steps, "make_train_function", "make_test_function")


def _overrides(call: MethodCall, *names: str) -> bool:
    """Return whether a model's class overrides any of the named Keras methods."""
    base = KERAS_TRAINER.load().TensorFlowTrainer if keras_of(call.model) == "keras" else call.package.Model
    return any(getattr(type(call.model), name, None) is not getattr(base, name, None) for name in names)


def _agreed(call: MethodCall, strategy: ReplicaStrategy) -> tuple[bool, bool]:
    """Return whether any worker reads the logs of steps, and whether all have equally many model-saving callbacks."""
    known, callbacks = call.package.callbacks, given_callbacks(call.arguments.get("callbacks"))
    reads = call.arguments.get("verbose", "auto") in (1, "auto")
    reads = reads or any(_reads_steps(call.package, each) for each in callbacks)
    savers = sum(isinstance(each, known.ModelCheckpoint | known.BackupAndRestore) for each in callbacks)
    found = [each.split() for each in strategy.collectives.gather_bytes(f"{int(reads)} {savers}".encode())]
    return any(each[0] == b"1" for each in found), len({each[1] for each in found}) == 1


def _reads_steps(keras: ModuleType, callback: Any) -> bool:
    """Return whether a callback runs after single steps and may read their logs."""
    known = keras.callbacks
    if getattr(callback, "ignores_step_logs", False) or isinstance(callback, known.BackupAndRestore):
        return False
    if isinstance(callback, known.ModelCheckpoint) and callback.save_freq == "epoch":
        return False
    if isinstance(callback, known.TensorBoard) and callback.update_freq == "epoch":
        return False
    names = ("on_batch_end", "on_train_batch_end", "on_test_batch_end")
    overridden = [getattr(type(callback), name) is not getattr(known.Callback, name) for name in names]
    return any(overridden) or any(name in vars(callback) for name in names)


@contextlib.contextmanager
def as_one_process(call: MethodCall) -> Iterator[None]:
    """Make the model of a single worker train as if without a strategy, which its steps do not need."""
    strategy = call.model.distribute_strategy
    if not isinstance(strategy, ReplicaStrategy):
        yield
        return
    with without_strategy(call.model, strategy):
        yield


# In the order in which they are entered: datasets are marked before they are divided, and steps are traced only once it
# is known whether their logs are read.
HOOKS = (own_rows_of_workers, noting_readers, as_replica)
