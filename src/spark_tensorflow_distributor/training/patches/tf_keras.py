"""Patches for tf_keras, which supports several workers but treats all their parts of a batch as equal."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import by_name
from ..private_names import (
    TF_KERAS_BACKEND,
    TF_KERAS_COMPILED,
    TF_KERAS_DATA,
    TF_KERAS_LOSSES,
    TF_KERAS_METRICS,
    TF_KERAS_SAVING,
    TF_KERAS_SAVING_API,
    TF_KERAS_TRAINING,
)
from .batch_parts import current_part, is_same_for_all_rows, rows_in_part
from .global_batches import DividingStrategy, distribute_parts, divide_dataset, knowing_parts, run_parts
from .losses import batch_fraction, scaling, sum_over_replicas
from .probe import spans_workers
from .random_numbers import drawing_for_all, mark_noise, with_a_seed
from .saved_files import atomically, on_the_chief

# Set on what a metric has returned within a step.
_OF_ALL_WORKERS = "_spark_tensorflow_distributor_of_all_workers"


def global_batches(keras: ModuleType) -> bool:
    """Cut each batch of a dataset into the workers' parts, as for Keras 3."""
    adapters: Any = TF_KERAS_DATA.load()
    handler, model = adapters.DataHandler, keras.Model
    handler._configure_dataset_and_inferred_steps = _dividing(
        adapters.DatasetAdapter, handler._configure_dataset_and_inferred_steps
    )
    adapters.single_batch_iterator = _dividing_one(adapters.single_batch_iterator)
    run_parts()
    for name in ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch"):
        setattr(model, name, knowing_parts(getattr(model, name), model))
    return True


def _dividing(dataset_adapter: type, original: Callable[..., None]) -> Callable[..., None]:
    def configure(call: inspect.BoundArguments) -> None:
        self, strategy = call.arguments["self"], call.arguments["strategy"]

        def divide(dataset: Any) -> Any:
            is_users = isinstance(self._adapter, dataset_adapter)
            length = (call.arguments["steps_per_epoch"], self._adapter.get_size())
            return divide_dataset(strategy, dataset, *length, is_users=is_users)

        if spans_workers(strategy):
            call.arguments["strategy"] = DividingStrategy(strategy, divide)
        original(*call.args, **call.kwargs)

    return by_name(original, configure)


def _dividing_one(original: Callable[..., Any]) -> Callable[..., Any]:
    def single_batch_iterator(call: inspect.BoundArguments) -> Any:
        strategy = call.arguments["strategy"]
        if spans_workers(strategy):
            divided = DividingStrategy(strategy, lambda data: distribute_parts(strategy, data, True))
            call.arguments["strategy"] = divided
        return original(*call.args, **call.kwargs)

    return by_name(original, single_batch_iterator)


def weight_losses(keras: ModuleType) -> bool:
    """Weight a worker's loss by the rows and words that it has of the global batch, as for Keras 3."""
    module: Any = TF_KERAS_LOSSES.load()
    module.scale_loss_for_distribution = scaling(module.scale_loss_for_distribution, operator.mul)
    module.apply_valid_mask = _masking(module)
    compiled: Any = TF_KERAS_COMPILED.load()
    compiled.tf = _TensorFlow()
    return True


class _TensorFlow:
    """Stands in for TensorFlow where tf_keras asks the strategy by what to multiply a loss that is a sum.

    The factor makes the mean over the workers, weighted by rows, equal to the whole sum.
    """

    def __init__(self) -> None:
        self.distribute = types.SimpleNamespace(get_strategy=self._strategy)

    def __getattr__(self, name: str) -> Any:
        return getattr(tf, name)

    def _strategy(self) -> Any:
        fraction = batch_fraction()
        return tf.distribute.get_strategy() if fraction is None else _Divisor(fraction)


class _Divisor:
    """Stands in for a strategy and its number of replicas: the inverse of a worker's batch fraction."""

    def __init__(self, fraction: tf.Tensor) -> None:
        self._fraction = fraction
        self.num_replicas_in_sync = self

    def __rmul__(self, loss: tf.Tensor) -> tf.Tensor:
        return loss / tf.cast(self._fraction, loss.dtype)


def _masking(module: Any) -> Callable[..., Any]:
    original, averaging = module.apply_valid_mask, (module.ReductionV2.AUTO, module.ReductionV2.SUM_OVER_BATCH_SIZE)

    def apply_valid_mask(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        mask, fraction = arguments["mask"], batch_fraction()
        if mask is None or arguments["reduction"] not in averaging or fraction is None:
            return original(*call.args, **call.kwargs)
        # The loss will be the mean over this part, times its fraction: the part's total is that fraction of the whole.
        dtype = arguments["losses"].dtype
        mask = tf.cast(mask, dtype)
        unmasked = sum_over_replicas(tf.reduce_sum(mask))
        total = tf.cast(tf.size(mask), dtype) / tf.cast(fraction, dtype)
        arguments["mask"] = mask * tf.math.divide_no_nan(total, unmasked)
        arguments["reduction"] = module.ReductionV2.SUM  # which leaves the mask unchanged
        return original(*call.args, **call.kwargs)

    return by_name(original, apply_valid_mask)


def dropout(keras: ModuleType) -> bool:
    """Give each row of a global batch its own mask, as for Keras 3.

    These generators are stateful, so each worker draws the masks of the global batch and takes those of its part.
    """
    generator = TF_KERAS_BACKEND.load().RandomGenerator
    original = generator.dropout

    @functools.wraps(original)
    def dropout(self: Any, inputs: tf.Tensor, rate: float, noise_shape: Any = None) -> tf.Tensor:
        part = current_part()
        if part is None or is_same_for_all_rows(noise_shape) or tf.distribute.get_replica_context() is None:
            return original(self, inputs, rate, noise_shape)
        shape = tf.shape(inputs, out_type=tf.int64)
        per_row = shape[0] // tf.maximum(rows_in_part(part), 1)  # a TimeDistributed layer has several for a row
        count, begin = per_row * part.global_rows, per_row * part.begin
        if noise_shape is not None:
            noise_shape = [tf.cast(count, tf.int32), *noise_shape[1:]]
        masks = original(self, tf.ones(tf.concat([[count], shape[1:]], axis=0), inputs.dtype), rate, noise_shape)
        return inputs * tf.ensure_shape(masks[begin : begin + shape[0]], inputs.shape)

    generator.dropout = dropout
    return True


def noise(keras: ModuleType) -> bool:
    """Give each row of a global batch its own noise, as for Keras 3."""
    generator = TF_KERAS_BACKEND.load().RandomGenerator
    for name in ("random_normal", "random_uniform"):
        setattr(generator, name, drawing_for_all(getattr(generator, name)))
    mark_noise(keras.layers)
    return True


def shuffled_arrays(keras: ModuleType) -> bool:
    """Shuffle arrays in the same order on all workers if the program sets no seed, as for Keras 3."""
    handler = TF_KERAS_DATA.load().DataHandler
    handler.__init__ = with_a_seed(handler.__init__)
    return True


def step_logs(keras: ModuleType) -> bool:
    """Do not sum the values of metrics a second time.

    A metric's value already covers all workers. tf_keras sums it over the workers once more, so that callbacks and the
    progress bar see a multiple of each step's loss. What a custom step returns is still summed, as tf_keras does: its
    losses are the workers' shares of the whole.
    """
    metrics: Any = TF_KERAS_METRICS.load()
    training: Any = TF_KERAS_TRAINING.load()
    wrapper, reduce_all = metrics.result_wrapper, training.reduce_per_replica

    @functools.wraps(wrapper)
    def result_wrapper(result: Callable[..., Any]) -> Callable[..., Any]:
        original = wrapper(result)

        @functools.wraps(original)
        def decorated(*args: Any) -> Any:
            values = original(*args)
            if tf.distribute.in_cross_replica_context() is False:
                for value in tf.nest.flatten(values):
                    setattr(value, _OF_ALL_WORKERS, True)
            return values

        return decorated

    @functools.wraps(reduce_all)
    def reduce_per_replica(values: Any, strategy: tf.distribute.Strategy, reduction: str) -> Any:
        if reduction not in ("auto", "sum") or not spans_workers(strategy):
            return reduce_all(values, strategy, reduction)

        def reduced(value: Any) -> Any:
            local = strategy.experimental_local_results(value)
            if all(getattr(each, _OF_ALL_WORKERS, False) for each in local):
                return local[0]
            return reduce_all(value, strategy, reduction)

        return tf.nest.map_structure(reduced, values)

    metrics.result_wrapper, training.reduce_per_replica = result_wrapper, reduce_per_replica
    return True


def moving_statistics(keras: ModuleType) -> bool:
    """Make the moving statistics of BatchNormalization the same on all workers at the end of each epoch.

    tf_keras averages them when it saves them, but each worker evaluates and predicts with its own.
    """
    model = keras.Model
    original = model._validate_and_get_metrics_result

    @functools.wraps(original)
    def validate_and_get_metrics_result(self: Any, logs: Any) -> Any:
        if spans_workers(self.distribute_strategy):
            for variable in self.non_trainable_variables:
                kinds = getattr(variable, "synchronization", None), getattr(variable, "aggregation", None)
                if kinds == (tf.VariableSynchronization.ON_READ, tf.VariableAggregation.MEAN):
                    variable.assign(variable.read_value())
        return original(self, logs)

    model._validate_and_get_metrics_result = validate_and_get_metrics_result
    return True


def saved_models(keras: ModuleType) -> bool:
    """Write a model's file atomically, as for Keras 3, and make the state of metrics loadable.

    Assigning a value of all workers divides it among them, which does not work for values that h5py reads lazily.
    """
    store = TF_KERAS_SAVING.load().H5IOStore
    get = store.get

    @functools.wraps(get)
    def arrays(self: Any, path: str) -> dict[str, Any]:
        return {name: value[()] for name, value in get(self, path).items()}

    store.get = arrays
    saving = TF_KERAS_SAVING_API.load()
    for name in ("save_model", "save_weights"):
        setattr(saving, name, atomically(getattr(saving, name)))
    return True


def callbacks(keras: ModuleType) -> bool:
    """Let CSVLogger write on the chief only; the other callbacks of tf_keras that write support several workers."""
    logger = keras.callbacks.CSVLogger
    for name in [name for name in vars(logger) if name.startswith("on_")]:
        setattr(logger, name, on_the_chief(getattr(logger, name)))
    return True
