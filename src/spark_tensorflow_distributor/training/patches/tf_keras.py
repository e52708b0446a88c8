"""What tf_keras lacks: it trains over several workers by itself, but takes all their parts of a batch for equal."""

import functools
import inspect
import operator
import types
from collections.abc import Callable
from typing import Any

from ..keras_api import by_name
from .batch_parts import is_of_no_row, present_part, rows_of_part
from .global_batches import Cutting, knowing_parts, parts_out, run_parts, share_out
from .losses import batch_fraction, scaling, sum_over_replicas
from .probe import spans_workers
from .random_numbers import drawing_for_all, tell_noise, with_a_seed
from .saved_files import at_once, on_the_chief

# On what a metric has returned within a step.
_OF_ALL_WORKERS = "_spark_tensorflow_distributor_of_all_workers"


def global_batches(tf: Any, keras: Any) -> bool:
    """As for Keras 3: cuts each batch of one dataset into the workers' parts."""
    adapters, model = keras.src.engine.data_adapter, keras.Model
    handler = adapters.DataHandler
    handler._configure_dataset_and_inferred_steps = _cutting(
        tf, adapters, handler._configure_dataset_and_inferred_steps
    )
    adapters.single_batch_iterator = _cutting_one(tf, adapters.single_batch_iterator)
    run_parts(tf)
    for name in ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch"):
        setattr(model, name, knowing_parts(getattr(model, name), model))
    return True


def _cutting(tf: Any, adapters: Any, original: Callable[..., None]) -> Callable[..., None]:
    def configure(call: inspect.BoundArguments) -> None:
        self, strategy = call.arguments["self"], call.arguments["strategy"]

        def share(dataset: Any) -> Any:
            is_users = isinstance(self._adapter, adapters.DatasetAdapter)
            length = (call.arguments["steps_per_epoch"], self._adapter.get_size())
            return share_out(tf, strategy, dataset, *length, is_users=is_users)

        if spans_workers(tf, strategy):
            call.arguments["strategy"] = Cutting(strategy, share)
        original(*call.args, **call.kwargs)

    return by_name(original, configure)


def _cutting_one(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def single_batch_iterator(call: inspect.BoundArguments) -> Any:
        strategy = call.arguments["strategy"]
        if spans_workers(tf, strategy):
            call.arguments["strategy"] = Cutting(strategy, lambda data: parts_out(tf, strategy, data, True))
        return original(*call.args, **call.kwargs)

    return by_name(original, single_batch_iterator)


def shares(tf: Any, keras: Any) -> bool:
    """As for Keras 3: lets a worker's loss count for the rows and words that it has of the whole batch."""
    module = keras.src.utils.losses_utils
    module.scale_loss_for_distribution = scaling(tf, module.scale_loss_for_distribution, operator.mul)
    module.apply_valid_mask = _masking(tf, module)
    keras.src.engine.compile_utils.tf = _TensorFlow(tf)
    return True


class _TensorFlow:
    """Passes for TensorFlow where tf_keras asks it for one thing about the strategy: by what a loss that is a sum has
    to be multiplied, for that the mean over the workers, weighted by rows, be the whole sum.
    """

    def __init__(self, tf: Any) -> None:
        self._tf = tf
        self.distribute = types.SimpleNamespace(get_strategy=self._strategy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tf, name)

    def _strategy(self) -> Any:
        share = batch_fraction(self._tf)
        return self._tf.distribute.get_strategy() if share is None else _Divisor(share)


class _Divisor:
    """Passes for a strategy and its number of replicas: the inverse of a worker's share."""

    def __init__(self, share: Any) -> None:
        self._share = share
        self.num_replicas_in_sync = self

    def __rmul__(self, loss: Any) -> Any:
        import tensorflow as tf

        return loss / tf.cast(self._share, loss.dtype)


def _masking(tf: Any, module: Any) -> Callable[..., Any]:
    original, averaging = module.apply_valid_mask, (module.ReductionV2.AUTO, module.ReductionV2.SUM_OVER_BATCH_SIZE)

    def apply_valid_mask(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        mask, share = arguments["mask"], batch_fraction(tf)
        if mask is None or arguments["reduction"] not in averaging or share is None:
            return original(*call.args, **call.kwargs)
        # The loss will be the mean over this part, times its share: its own total is that share of the whole one.
        dtype = arguments["losses"].dtype
        mask = tf.cast(mask, dtype)
        left = sum_over_replicas(tf, tf.reduce_sum(mask))
        total = tf.cast(tf.size(mask), dtype) / tf.cast(share, dtype)
        arguments["mask"] = mask * tf.math.divide_no_nan(total, left)
        arguments["reduction"] = module.ReductionV2.SUM  # which leaves the mask as it is
        return original(*call.args, **call.kwargs)

    return by_name(original, apply_valid_mask)


def dropout(tf: Any, keras: Any) -> bool:
    """As for Keras 3: gives each row of a batch a mask of its own.

    These generators are stateful, so each worker draws the masks of the whole batch and takes those of its part.
    """
    generator = keras.src.backend.RandomGenerator
    original = generator.dropout

    @functools.wraps(original)
    def dropout(self: Any, inputs: Any, rate: float, noise_shape: Any = None) -> Any:
        part = present_part()
        if part is None or is_of_no_row(noise_shape) or tf.distribute.get_replica_context() is None:
            return original(self, inputs, rate, noise_shape)
        shape = tf.shape(inputs, out_type=tf.int64)
        each = shape[0] // tf.maximum(rows_of_part(part), 1)  # a TimeDistributed layer has several for a row
        count, begin = each * part.rows, each * part.begin
        if noise_shape is not None:
            noise_shape = [tf.cast(count, tf.int32), *noise_shape[1:]]
        masks = original(self, tf.ones(tf.concat([[count], shape[1:]], axis=0), inputs.dtype), rate, noise_shape)
        return inputs * tf.ensure_shape(masks[begin : begin + shape[0]], inputs.shape)

    generator.dropout = dropout
    return True


def noise(tf: Any, keras: Any) -> bool:
    """As for Keras 3: gives each row of a batch noise of its own."""
    generator = keras.src.backend.RandomGenerator
    for name in ("random_normal", "random_uniform"):
        setattr(generator, name, drawing_for_all(tf, getattr(generator, name)))
    tell_noise(keras.layers)
    return True


def shuffled_arrays(tf: Any, keras: Any) -> bool:
    """As for Keras 3: the same random order of arrays on all workers where the program gives no seed."""
    handler = keras.src.engine.data_adapter.DataHandler
    handler.__init__ = with_a_seed(tf, handler.__init__)
    return True


def step_logs(tf: Any, keras: Any) -> bool:
    """Leaves the values of metrics as they are.

    A metric's value is of all workers already. tf_keras sums it over the workers once more, so that callbacks and the
    progress bar see a multiple of each step's loss. What a step of the program returns is summed, as tf_keras does: its
    losses are the workers' shares of the whole.
    """
    metrics, training = keras.src.utils.metrics_utils, keras.src.engine.training
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
    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        if reduction not in ("auto", "sum") or not spans_workers(tf, strategy):
            return reduce_all(values, strategy, reduction)

        def reduced(value: Any) -> Any:
            local = strategy.experimental_local_results(value)
            if all(getattr(each, _OF_ALL_WORKERS, False) for each in local):
                return local[0]
            return reduce_all(value, strategy, reduction)

        return tf.nest.map_structure(reduced, values)

    metrics.result_wrapper, training.reduce_per_replica = result_wrapper, reduce_per_replica
    return True


def moving_statistics(tf: Any, keras: Any) -> bool:
    """Makes the moving statistics of BatchNormalization the same on all workers at the end of each epoch.

    tf_keras averages them where they are saved, but each worker evaluates and predicts with its own.
    """
    model = keras.Model
    original = model._validate_and_get_metrics_result

    @functools.wraps(original)
    def validate_and_get_metrics_result(self: Any, logs: Any) -> Any:
        if spans_workers(tf, self.distribute_strategy):
            for variable in self.non_trainable_variables:
                kinds = getattr(variable, "synchronization", None), getattr(variable, "aggregation", None)
                if kinds == (tf.VariableSynchronization.ON_READ, tf.VariableAggregation.MEAN):
                    variable.assign(variable.read_value())
        return original(self, logs)

    model._validate_and_get_metrics_result = validate_and_get_metrics_result
    return True


def saved_models(tf: Any, keras: Any) -> bool:
    """As for Keras 3: writes a model's file under another name first; and loads the state of metrics.

    A value of all workers is divided among them when it is assigned, which those that h5py reads cannot be.
    """
    store = keras.src.saving.saving_lib.H5IOStore
    get = store.get

    @functools.wraps(get)
    def arrays(self: Any, path: str) -> Any:
        return {name: value[()] for name, value in get(self, path).items()}

    store.get = arrays
    saving = keras.src.saving.saving_api
    for name in ("save_model", "save_weights"):
        setattr(saving, name, at_once(getattr(saving, name)))
    return True


def callbacks(tf: Any, keras: Any) -> bool:
    """Lets CSVLogger write on the chief only; the others of tf_keras that write know of several workers."""
    logger = keras.callbacks.CSVLogger
    for name in [name for name in vars(logger) if name.startswith("on_")]:
        setattr(logger, name, on_the_chief(tf, getattr(logger, name)))
    return True
