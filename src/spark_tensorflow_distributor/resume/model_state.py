"""The variables of a model in training, as plain arrays, and how to restore them.

A variable has the same value on every rank; or each rank has its own, such as moving statistics in mid-epoch; or it is
partial: each rank has its own part of a metric, and the value is the sum of the parts. Under TensorFlow's own strategy,
moving statistics are partial, too; their value is the mean of the parts.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import CheckpointError
from ..formatting import mebibytes
from ..training.keras_api import optimizer_variables
from ..training.keras_internals import (
    build_optimizer,
    built_for,
    compiled_losses_and_metrics,
    unlisted_variables,
    when_built,
)
from ..training.patches.layer_state import averaged_state
from ..training.random_state import global_seed
from ..training.variable_sync import START, is_partial_sum, plain_variable, without_autocast
from .callback_state import Callback
from .example_inputs import example_inputs
from .held_variables import held_variables
from .resume_point import HeldValues, LayerState, OptimizerStates, OptimizerTargets, VariableKey, VariableSpec
from .user_optimizers import restore as restore_states
from .user_optimizers import user_optimizers
from .variable_specs import Variable, describe, difference, is_tensorflows

# Every rank holds a few copies of the state of all ranks while a checkpoint is taken.
_MAX_LAYER_BYTES = _MAX_HELD_BYTES = 128 << 20
_TOO_LARGE = (
    "The state of the model's layers differs between the workers and takes up %s in total. Each worker's own state is "
    "saved only up to %s; checkpoints hold the average, and after a failure all workers would continue with it."
)

_MISSING = (
    "The checkpoint holds the variables %s, which do not exist when training resumes, so they begin with their initial "
    "values. Create them before fit begins, or in on_train_begin."
)

# The models about which a warning was given, not only in this fit.
_warned: set[int] = set()


class ModelState:
    """The variables of a model in training, on this rank.

    Args:
        model: A model of Keras 3 or tf_keras.
        is_chief: Whether this is rank 0, which gets the whole value when a sum is restored.
        warn: Shows a warning on the driver.
    """

    def __init__(self, model: Any, is_chief: bool, warn: Callable[[str], None]) -> None:
        self.model = model
        self._strategy = model.distribute_strategy
        self._is_chief, self._warn = is_chief, warn
        self._pending_metrics: Sequence[np.ndarray] | None = None
        self._cancel_pending: list[Callable[[], None]] = []

    def build(self, data: Any) -> Any:
        """Create the model's variables, which Keras would otherwise create in the first step.

        Args:
            data: The ``x`` of ``fit``; only shapes and types matter.

        Returns:
            What to pass to ``fit`` instead: the same data, or for a generator, one that yields all of its batches.
        """
        if self.model.built:
            return data
        inputs, data = example_inputs(data)
        # A model with its own train_step and no call method has built its parts itself.
        with self._strategy.scope(), contextlib.suppress(NotImplementedError):
            self.model(inputs, training=False)
        return data

    def _build_optimizer(self, keys: Sequence[VariableKey] | None) -> None:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None or getattr(optimizer, "built", False) is True:
            return
        if keys:
            self._build_for(optimizer, keys)
        else:
            with self._strategy.scope():
                build_optimizer(optimizer, self.model.trainable_variables)

    def _build_for(self, optimizer: Any, keys: Sequence[VariableKey]) -> None:
        variables = self._variables_by_key()
        if all(key in variables for key in keys):  # otherwise, the model is another one
            with self._strategy.scope():
                build_optimizer(optimizer, [variables[key] for key in keys])

    @contextlib.contextmanager
    def averaged_layers(self) -> Iterator[LayerState]:
        """Average the layers' variables that differ between ranks, within the context; every rank must call this.

        Each rank has its own moving statistics until the end of an epoch, when they are averaged. After a checkpoint,
        training continues with each rank's own: if a layer computes its outputs from them, averaging them earlier would
        change the training.

        Yields:
            This rank's own values; none if those of all ranks are too large for a checkpoint.
        """
        with averaged_state(self.model) as own:
            values = {id(variable): value for variable, value in own}
            size = sum(value.nbytes for value in values.values()) * self._strategy.num_replicas_in_sync
            if size > _MAX_LAYER_BYTES:
                if self._is_chief and id(self.model) not in _warned:
                    _warned.add(id(self.model))
                    self._warn(_TOO_LARGE % (mebibytes(size), mebibytes(_MAX_LAYER_BYTES)))
                values = {}
            ids = [id(plain_variable(each)) for each in self.weights] if values else []
            yield {index: values[each] for index, each in enumerate(ids) if each in values}

    @property
    def weights(self) -> list[Variable]:
        """Variables of model and optimizer, including random seeds, in the same order in every process."""
        optimizer = getattr(self.model, "optimizer", None)
        variables = [*self.model.variables, *optimizer_variables(optimizer), *global_seed(self.model)]
        variables += unlisted_variables(self.model)
        metrics = {id(each) for each in self.metrics}
        return [each for each in _unique(variables) if id(each) not in metrics]

    @property
    def metrics(self) -> list[Variable]:
        """Variables of the metrics, which Keras resets every epoch."""
        return _unique(variable for metric in self.model.metrics for variable in metric.variables)

    def local_part(self) -> list[np.ndarray]:
        """Return this rank's parts of the partial variables."""
        return [self._local(variable) for variable in self.weights + self.metrics if _is_partial(variable)]

    def capture(self, parts: Sequence[Sequence[np.ndarray]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the values of :attr:`weights` and :attr:`metrics`.

        Args:
            parts: The results of :meth:`local_part` on all ranks.
        """
        values = iter([list(of_ranks) for of_ranks in zip(*parts, strict=True)])

        def value(variable: Variable) -> np.ndarray:
            return _merged(variable, next(values)) if _is_partial(variable) else self._local(variable)

        return [value(each) for each in self.weights], [value(each) for each in self.metrics]

    def capture_optimizers(self) -> tuple[OptimizerStates, OptimizerTargets]:
        """Return the values of the model's optimizers other than ``model.optimizer``, and what all of them train.

        The latter says for which variables each optimizer was built: some train only a part of their model.
        """
        others = user_optimizers(self.model)
        by_key = self._variables_by_key()
        keys, variables = list(by_key), list(by_key.values())
        optimizers = {"optimizer": getattr(self.model, "optimizer", None), **others}
        found = {name: built_for(optimizer, variables) for name, optimizer in optimizers.items()}
        targets = {name: [keys[index] for index in indices] for name, indices in found.items() if indices}
        return {name: [self._local(each) for each in optimizer_variables(of)] for name, of in others.items()}, targets

    def _variables_by_key(self) -> dict[VariableKey, Variable]:
        by_key: dict[VariableKey, Variable] = dict(enumerate(self.weights))
        by_key.update(self.held())
        return by_key

    def restore_optimizers(self, saved: OptimizerStates, targets: OptimizerTargets | None) -> None:
        """Set the variables of the model's optimizers other than ``model.optimizer``, now or when they are created.

        Args:
            saved: The values from :meth:`capture_optimizers`.
            targets: What they train, from the same method; None if the checkpoint is from an older version.

        Raises:
            CheckpointError: If the values belong to other optimizers.
        """

        def assign(optimizer: Any, values: Sequence[np.ndarray]) -> None:
            for variable, value in zip(optimizer_variables(optimizer), values, strict=True):
                self._assign(variable, value)

        def build(name: str, optimizer: Any) -> None:
            if keys := (targets or {}).get(name):
                self._build_for(optimizer, keys)

        restore_states(user_optimizers(self.model), saved, assign, build, is_old=targets is None)

    def restore_weights(
        self, values: Sequence[np.ndarray], saved: Sequence[VariableSpec], keys: Sequence[VariableKey] | None
    ) -> None:
        """Set the variables of model and optimizer.

        Args:
            values: The values.
            saved: The variables to which they belonged.
            keys: For which variables ``model.optimizer`` was built; None for all that are trainable.

        Raises:
            CheckpointError: If the values belong to another model.
        """
        if len(self.weights) < len(saved):
            # Create the optimizer's variables only if some were saved: an optimizer that the model's train_step does
            # not use has none.
            self._build_optimizer(keys)
        variables = self.weights
        present = describe(variables)
        if [each[1:] for each in present] != [each[1:] for each in saved]:
            raise CheckpointError(difference(present, saved))
        for variable, value in zip(variables, values, strict=True):
            self._assign(variable, value)

    def restore_layers(self, own: LayerState) -> None:
        """Set this rank's own values of the layers' variables, after :meth:`restore_weights`."""
        variables = self.weights
        for index, value in own.items():
            self._assign(variables[index], value)

    def held(self, callbacks: Sequence[Callback] = ()) -> dict[str, tf.Variable]:
        """Return the variables that the model and its callbacks hold, but Keras does not list."""
        known = [*self.weights, *self.metrics]
        for optimizer in user_optimizers(self.model).values():
            known += optimizer_variables(optimizer)
        return held_variables(self.model, callbacks, known)

    def capture_held(self, callbacks: Sequence[Callback]) -> tuple[HeldValues, HeldValues]:
        """Return this rank's values of :meth:`held`, and those to gather: none if those of all ranks are too large.

        If they are too large, ranks other than 0 do not even read their values.
        """
        held = self.held(callbacks)
        size = sum(int(tf.size(each)) * each.dtype.size for each in held.values())
        is_gathered = size * self._strategy.num_replicas_in_sync <= _MAX_HELD_BYTES
        if not is_gathered and not self._is_chief:
            return {}, {}
        values = {path: np.asarray(self._components(each)[0].numpy()) for path, each in held.items()}
        return values, values if is_gathered else {}

    def restore_held(self, values: HeldValues, callbacks: Sequence[Callback], *, is_same_size: bool) -> None:
        """Set the variables that :meth:`held` returns.

        Args:
            values: The values of this rank, or of rank 0 if the number of workers has changed.
            callbacks: The callbacks of the ``fit``.
            is_same_size: Whether the number of workers is the same; sums over the workers are not restored otherwise.

        Raises:
            CheckpointError: If the values belong to variables of other shapes.
        """
        variables = self.held(callbacks)
        for path in values.keys() & variables.keys():
            variable, value = variables[path], values[path]
            if not variable.shape.is_compatible_with(value.shape) or variable.dtype.as_numpy_dtype != value.dtype:
                if not is_same_size:  # the shape may depend on the number of workers
                    continue
                raise CheckpointError(
                    f"It belongs to another model: it holds values of shape {value.shape} and type {value.dtype} for "
                    f"{path}, which has the shape {variable.shape} and the type {variable.dtype.name}."
                )
            if is_same_size or not is_partial_sum(variable):
                for component in self._components(variable):
                    component.assign(value)
        if self._is_chief and (missing := sorted(values.keys() - variables.keys())):
            self._warn(_MISSING % ", ".join(missing[:3]))

    def restore_metrics(self, values: Sequence[np.ndarray]) -> None:
        """Set the metrics at the beginning of an epoch, or in its first step if they are created only then."""
        self._pending_metrics = values
        if self._set_pending_metrics(add=False):
            return
        for part in compiled_losses_and_metrics(self.model):
            # A step that is not traced may have updated the loss before it creates the metrics.
            self._cancel_pending.append(when_built(part, lambda: self._set_pending_metrics(add=self.model.run_eagerly)))

    def finish_metrics(self) -> None:
        """Set metrics that exist only after the first step of an epoch; the logs of that step lacked the values."""
        self._set_pending_metrics(add=True)
        self._pending_metrics = None
        while self._cancel_pending:
            self._cancel_pending.pop()()

    def _set_pending_metrics(self, *, add: bool) -> bool:
        """Set the metrics, or add to the result of a step; return False if some do not exist yet."""
        variables, values = self.metrics, self._pending_metrics
        if values is None or len(variables) != len(values):
            return False
        self._pending_metrics = None
        with tf.init_scope():  # the step may still be traced, but the variables exist already
            for variable, value in zip(variables, values, strict=True):
                self._assign(variable, value, add=add)
        return True

    def _local(self, variable: Variable) -> np.ndarray:
        parts = [np.asarray(each.numpy()) for each in self._components(variable)]
        return _merged(variable, parts) if _is_partial(variable) and len(parts) > 1 else parts[0]

    def _components(self, variable: Variable) -> "Sequence[tf.Variable]":
        components: Sequence[tf.Variable] = self._strategy.experimental_local_results(_tf_variable(variable))
        return components

    def _assign(self, variable: Variable, value: np.ndarray, *, add: bool = False) -> None:
        is_sum = _is_partial(variable) and _aggregation(variable) == "SUM"
        for index, component in enumerate(self._components(variable)):
            is_whole = not is_sum or (self._is_chief and index == 0)
            start = _start(variable) if is_sum else np.zeros_like(value)
            if add:
                component.assign(component.numpy() + (value - start if is_whole else 0))
            else:
                component.assign(value if is_whole else np.broadcast_to(start, value.shape))


def _unique(variables: Iterable[Variable]) -> list[Variable]:
    return list({id(each): each for each in map(without_autocast, variables)}.values())


def _tf_variable(variable: Variable) -> Variable:
    """Return the TensorFlow variable inside a Keras 3 variable."""
    return variable if is_tensorflows(variable) else variable.value


def _is_partial(variable: Variable) -> bool:
    inner = _tf_variable(variable)
    is_distributed = hasattr(inner, "values") and inner.synchronization == tf.VariableSynchronization.ON_READ
    return is_distributed or is_partial_sum(inner)


def _aggregation(variable: Variable) -> str:
    return str(getattr(getattr(_tf_variable(variable), "aggregation", None), "name", "NONE"))


def _start(variable: Variable) -> np.ndarray:
    """Return the value from which each part of a sum starts."""
    inner = _tf_variable(variable)
    start = getattr(inner, START, None) if is_partial_sum(inner) else None
    return np.asarray(0 if start is None else start, inner.dtype.as_numpy_dtype)


def _merged(variable: Variable, parts: Sequence[np.ndarray]) -> np.ndarray:
    kind = _aggregation(variable)
    if kind == "SUM":
        surplus = _start(variable) * (len(parts) - 1)  # where each part starts counts once
        return np.asarray(np.sum(parts, axis=0, dtype=parts[0].dtype) - surplus, parts[0].dtype)
    if kind == "MEAN":
        return np.mean(parts, axis=0, dtype=np.float64).astype(parts[0].dtype)
    return parts[0]
