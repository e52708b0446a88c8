"""The patches for tf_keras that differ from those for Keras 3."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..batch_parts import EvenRows, OwnRows, divided_rows, part_of
from ..device_data import to_device
from ..keras_api import by_name
from ..keras_step import combines_logs
from ..own_rows import has_marked_rows
from ..part_data import check_agreement, divide, has_equal_batches
from ..private_names import (
    TF_KERAS_BACKEND,
    TF_KERAS_COMPILED,
    TF_KERAS_DATA,
    TF_KERAS_LOSSES,
    TF_KERAS_SAVING_API,
    TF_KERAS_TRAINING,
)
from ..replica import ReplicaStrategy, replica_strategy
from ..replica_step import batch_fraction, current_step, gets_parts
from ..same_batches import identical_on_all
from .epochs import Divider, epoch_logs, reads_a_generator, without_prefetch, without_reduction
from .losses import mask_weights, of_replica, scaling_in_user_steps
from .random_numbers import (
    drawing_for_all,
    is_drawn_by_row,
    is_same_for_all_rows,
    mark_noise,
    marking,
    with_a_seed,
)
from .saved_files import atomically, on_the_chief, waiting_for_all


def parts(keras: ModuleType) -> None:
    """Give each replica its part of each batch, as for Keras 3.

    tf_keras iterates within a graph, so parts are elements of a dataset.
    """
    adapters: Any = TF_KERAS_DATA.load()
    handler = adapters.DataHandler
    handler._configure_dataset_and_inferred_steps = _dividing(handler._configure_dataset_and_inferred_steps)
    adapters.single_batch_iterator = _dividing_one(adapters.single_batch_iterator)
    without_reduction(TF_KERAS_TRAINING.load())


def _dividing(original: Callable[..., None]) -> Callable[..., None]:
    def configure(call: inspect.BoundArguments) -> None:
        strategy = replica_strategy(call.arguments["strategy"])
        if strategy is not None:
            adapter = call.arguments["self"]._adapter
            length = call.arguments["steps_per_epoch"], adapter.get_size()
            prefetched = 0 if reads_a_generator(adapter) else 2
            call.arguments["strategy"] = Divider(lambda dataset: _part_dataset(strategy, dataset, *length, prefetched))
        original(*call.args, **call.kwargs)

    return by_name(original, configure)


def _part_dataset(
    strategy: ReplicaStrategy, dataset: Any, steps_per_epoch: Any, batches: Any, prefetched: int
) -> tf.data.Dataset:
    device = strategy.extended.worker_devices[0]
    if not gets_parts():
        return dataset
    is_marked = has_marked_rows(dataset)
    if not is_marked:
        check_agreement(strategy.collectives, [steps_per_epoch, batches, int(dataset.cardinality())])
        source = dataset if prefetched else without_prefetch(dataset)
        rows, _ = divide(source, strategy.collectives, prefetched)
        return to_device(rows, device)
    kind = EvenRows if has_equal_batches(dataset, strategy.collectives) else OwnRows
    wrapped = dataset.map(lambda *batch: kind(batch if isinstance(dataset.element_spec, tuple) else batch[0]))
    return to_device(wrapped.with_options(dataset.options()), device)


def _dividing_one(original: Callable[..., Any]) -> Callable[..., Any]:
    def single_batch_iterator(call: inspect.BoundArguments) -> Any:
        strategy = replica_strategy(call.arguments["strategy"])
        if strategy is not None:
            call.arguments["strategy"] = Divider(lambda dataset: _single(dataset, strategy))
        return original(*call.args, **call.kwargs)

    return by_name(original, single_batch_iterator)


def _single(dataset: tf.data.Dataset, strategy: ReplicaStrategy) -> tf.data.Dataset:
    (batch,) = dataset
    collectives = strategy.collectives
    if not identical_on_all(batch, collectives):
        return tf.data.Dataset.from_tensors(OwnRows(batch))
    part = part_of(batch, collectives.rank, collectives.world_size)
    no_sample = tf.constant(0, tf.int64)  # the whole batches have just been compared
    return tf.data.Dataset.from_tensors(divided_rows(part, no_sample))


def sums(keras: ModuleType) -> None:
    """Make sums over the rows and masked means cover the whole batch, as for Keras 3."""
    module: Any = TF_KERAS_LOSSES.load()
    module.reduce_weighted_loss = _reducing(module)
    module.apply_valid_mask = _masking(module)
    module.scale_loss_for_distribution = scaling_in_user_steps(module.scale_loss_for_distribution)
    base = keras.losses.Loss
    base._get_reduction = _reducing_in_user_steps(base._get_reduction)
    container = TF_KERAS_COMPILED.load().LossesContainer
    container.__call__ = _adding(container.__call__)


def _reducing(module: Any) -> Callable[..., Any]:
    original = module.reduce_weighted_loss

    @functools.wraps(original)
    def reduce_weighted_loss(weighted_losses: Any, reduction: Any = module.ReductionV2.SUM_OVER_BATCH_SIZE) -> Any:
        loss = original(weighted_losses, reduction)
        fraction = batch_fraction(loss) if reduction == module.ReductionV2.SUM else None
        return loss if fraction is None else of_replica(loss, fraction)

    return reduce_weighted_loss


def _reducing_in_user_steps(original: Callable[..., Any]) -> Callable[..., Any]:
    """Allow a loss object to take a mean in a strategy's scope, where tf_keras rejects it as ambiguous."""

    @functools.wraps(original)
    def get_reduction(self: Any) -> Any:
        is_user_step = tf.distribute.get_replica_context() is not None and current_step() is None
        if replica_strategy() is None or is_user_step:
            return original(self)
        before, self._allow_sum_over_batch_size = self._allow_sum_over_batch_size, True
        try:
            return original(self)
        finally:
            self._allow_sum_over_batch_size = before

    return get_reduction


def _masking(module: Any) -> Callable[..., Any]:
    original, averaging = module.apply_valid_mask, (module.ReductionV2.AUTO, module.ReductionV2.SUM_OVER_BATCH_SIZE)

    def apply_valid_mask(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        mask = arguments["mask"]
        if mask is None or arguments["reduction"] not in averaging or current_step() is None:
            return original(*call.args, **call.kwargs)
        arguments["mask"] = mask_weights(mask, arguments["losses"].dtype)
        arguments["reduction"] = module.ReductionV2.SUM  # tf_keras would weight the mask again for a mean
        return original(*call.args, **call.kwargs)

    return by_name(original, apply_valid_mask)


def _adding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Treat a vector passed to ``add_loss`` as a sum over the rows."""

    def losses_container(call: inspect.BoundArguments) -> Any:
        given = call.arguments.get("regularization_losses")
        if given and current_step() is not None:
            call.arguments["regularization_losses"] = [_of_rows(loss) for loss in given]
        return original(*call.args, **call.kwargs)

    return by_name(original, losses_container)


def _of_rows(loss: Any) -> Any:
    fraction = batch_fraction(loss)
    return loss if fraction is None or not len(loss.shape) else of_replica(loss, fraction)


def dropout(keras: ModuleType) -> None:
    """Give each row of a global batch its own mask, as for Keras 3.

    These generators are stateful, so each worker draws the masks of the global batch and uses the ones of its part.
    """
    generator = TF_KERAS_BACKEND.load().RandomGenerator
    original = generator.dropout

    @functools.wraps(original)
    def dropout(self: Any, inputs: tf.Tensor, rate: float, noise_shape: Any = None) -> tf.Tensor:
        step = current_step()
        # The layer converts its noise shape to a tensor.
        is_same = is_same_for_all_rows(noise_shape) or (tf.is_tensor(noise_shape) and not is_drawn_by_row())
        if step is None or is_same or not step.counts_rows(inputs.shape[0], inputs):
            return original(self, inputs, rate, noise_shape)
        shape = tf.shape(inputs, out_type=tf.int64)
        per_row = shape[0] // tf.maximum(step.rows, 1)  # a TimeDistributed layer has several entries per row
        begin, global_rows = step.positions()
        count, begin = per_row * global_rows, per_row * begin
        if noise_shape is not None:
            rest = tf.unstack(noise_shape)[1:] if tf.is_tensor(noise_shape) else noise_shape[1:]
            noise_shape = [tf.cast(count, tf.int32), *rest]
        masks = original(self, tf.ones(tf.concat([[count], shape[1:]], axis=0), inputs.dtype), rate, noise_shape)
        return inputs * tf.ensure_shape(masks[begin : begin + shape[0]], inputs.shape)

    generator.dropout = dropout
    keras.layers.Dropout.call = marking(keras.layers.Dropout.call)


def noise(keras: ModuleType) -> None:
    """Give each row of a global batch its own noise, as for Keras 3."""
    generator = TF_KERAS_BACKEND.load().RandomGenerator
    for name in ("random_normal", "random_uniform"):
        setattr(generator, name, drawing_for_all(getattr(generator, name)))
    mark_noise(keras.layers)


def shuffled_arrays(keras: ModuleType) -> None:
    """Shuffle arrays in the same order on all workers if the program sets no seed, as for Keras 3."""
    handler = TF_KERAS_DATA.load().DataHandler
    handler.__init__ = with_a_seed(handler.__init__)


def epoch_results(keras: ModuleType) -> None:
    """Make the logs of an epoch, and the state of layers after it, cover all workers, as for Keras 3."""
    keras.Model._validate_and_get_metrics_result = epoch_logs(keras.Model._validate_and_get_metrics_result)


def step_logs(keras: ModuleType) -> None:
    """Choose the graph of a step by whether the logs of steps are combined, as ``StepFunction`` does for Keras 3."""
    for kind in ("train", "test"):
        name = f"make_{kind}_function"
        setattr(keras.Model, name, _by_logs(getattr(keras.Model, name), f"{kind}_function"))


def _by_logs(original: Callable[..., Any], attribute: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_function(self: Any, force: bool = False) -> Any:
        before = getattr(self, attribute)
        function = original(self, force)
        if function is before or replica_strategy(self.distribute_strategy) is None:
            return function

        def make() -> Callable[[Any], Any]:
            whole = getattr(self, attribute)
            made: Callable[[Any], Any] = original(self, True)
            setattr(self, attribute, whole)  # tf_keras has replaced it
            return made

        setattr(self, attribute, _FunctionsByLogs(function, make))
        return getattr(self, attribute)

    return make_function


class _FunctionsByLogs:
    """A model's function for steps that combine their logs over the workers, and the one for steps that do not.

    Args:
        function: The one that is needed now.
        make: Makes the other.
    """

    def __init__(self, function: Callable[[Any], Any], make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make, self._made = make, {combines_logs(): function}

    def __call__(self, iterator: Any) -> Any:
        combines = combines_logs()
        if combines not in self._made:
            self._made[combines] = self._make()
        return self._made[combines](iterator)

    def experimental_get_tracing_count(self) -> int:
        """Return how many graphs have been traced, as a ``tf.function`` does."""
        counts = [getattr(each, "experimental_get_tracing_count", lambda: 0) for each in self._made.values()]
        return sum(count() for count in counts)


def saved_models(keras: ModuleType) -> None:
    """Write a model's file atomically, as for Keras 3."""
    saving = TF_KERAS_SAVING_API.load()
    for name in ("save_model", "save_weights"):
        setattr(saving, name, atomically(getattr(saving, name)))


def callbacks(keras: ModuleType) -> None:
    """Make CSVLogger write on the chief only, and every rank wait for ModelCheckpoint.

    The other callbacks of tf_keras that write files support several workers.
    """
    logger, checkpoint = keras.callbacks.CSVLogger, keras.callbacks.ModelCheckpoint
    for name in [name for name in vars(logger) if name.startswith("on_")]:
        setattr(logger, name, on_the_chief(getattr(logger, name)))
    checkpoint._save_model = waiting_for_all(checkpoint._save_model)
