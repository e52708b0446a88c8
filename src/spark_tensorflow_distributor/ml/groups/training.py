"""Trains many models of one architecture, one after the other, in one process.

A model is built, compiled and traced once. For each group, its variables and those of its optimizer get their initial
values back, and one call of a graph trains all epochs. The weights are those of a new model with the same seed.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ...data.columns import Column
from ...errors import ConfigurationError, DataError
from ...formatting import a_type
from ...inference.loading import from_keras
from ...inference.predictor import arrangement, tensor_of, type_spec_of
from ...inference.rows import Rows, stack
from ...training.keras_api import keras_of, optimizer_variables
from ...training.random_state import ensure_global_seed, global_seed, use_seed
from ..checks import (
    call_model_fn,
    check_classes,
    check_features,
    check_input_names,
    check_label_width,
    stacks_columns,
)
from ..outputs import check_loss
from ..task import arguments_for
from .callbacks import check_callbacks
from .graph import TrainingGraph
from .spec import OFFERED, GroupProgram, GroupTask

# Limit for epochs times rows in one call of the graph; more epochs need more calls.
_MAX_ORDER = 1 << 22
# How many models to keep for groups whose rows differ in shape, such as in the length of arrays.
_MAX_REPLICAS = 8
Logs = dict[str, float]
# The types and dimensions of the features.
_Shapes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class GroupData:
    """The rows of one group.

    Attributes:
        features: The features.
        labels: The labels, ``[rows]`` or ``[rows, k]``.
        weights: The rows' weights, ``[rows]``; None if all are 1.
        is_validation: True for the rows on which to evaluate the model after each epoch; None if there are none.
    """

    features: Sequence[Rows]
    labels: Rows
    weights: Rows | None = None
    is_validation: npt.NDArray[np.bool_] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.labels.data)


@dataclass(frozen=True)
class TrainedGroup:
    """A trained model.

    Attributes:
        weights: Its weights, in the order of Keras' ``get_weights``.
        history: The logs of each epoch.
    """

    weights: list[npt.NDArray[Any]]
    history: list[Logs]


class GroupTrainer:
    """Trains one model after the other.

    Args:
        task: Describes the training.
        load: Returns the user's functions; a model among them has its initial weights each time.
    """

    def __init__(self, task: GroupTask, load: Callable[[], GroupProgram]) -> None:
        self._task, self._load = task, load
        # By the features' shapes, since a model may depend on them, but not on which group comes first.
        self._replicas: OrderedDict[_Shapes, _Replica] = OrderedDict()
        self._errors: dict[_Shapes, Exception] = {}
        self._replica: _Replica | None = None

    def train(self, data: GroupData) -> TrainedGroup:
        """Train a model on the rows of a group, of which at least one is not for validation.

        Raises:
            Exception: What building the model raised, for each group again; or what training raised.
        """
        replica = self._replica_for(data)
        random.seed(self._task.seed)
        np.random.seed(self._task.seed % (1 << 32))
        if self._task.is_classifier:
            check_classes(self._task.label, data.labels.data, max(replica.width, 2))
        else:
            check_label_width(self._task.label, _width([data.labels]), replica.width)
        return replica.train(data)

    def _replica_for(self, data: GroupData) -> _Replica:
        shapes = tuple((each.dtype, each.dims) for each in data.features)
        if shapes in self._errors:
            raise self._errors[shapes].with_traceback(None)  # its traceback would grow, and keep the rows of each group
        replica = self._replicas.get(shapes)
        if replica is None or not replica.is_reusable:
            program = self._load()
            replica = _Replica(self._task, self._build(program, data.features, shapes), data, program.callbacks)
            while shapes not in self._replicas and len(self._replicas) >= _MAX_REPLICAS:
                self._replicas.popitem(last=False)
            self._replicas[shapes] = replica
        self._replicas.move_to_end(shapes)
        self._replica = replica
        return replica

    @property
    def model(self) -> Any:
        """The Keras model, with the weights of the last group."""
        assert self._replica is not None
        return self._replica.model

    @property
    def is_stacked(self) -> bool:
        """Whether the features go into the model side by side in one tensor."""
        assert self._replica is not None
        return self._replica.is_stacked

    @property
    def width(self) -> int:
        """The number of values that the model returns for a row."""
        assert self._replica is not None
        return self._replica.width

    def _build(self, program: GroupProgram, features: Sequence[Rows], shapes: _Shapes) -> Any:
        import keras

        keras.utils.set_random_seed(self._task.seed)
        use_seed(None)  # Spark reuses processes, and before Keras 3.13 the call leaves Keras' own generator as it is
        try:
            model = program.model
            if not keras_of(model):
                values = (_width(features), self._task.num_classes)
                offered = dict(zip(OFFERED, values, strict=True))
                arguments = arguments_for("modelFn", model, program.params, offered)
                model = call_model_fn(model, arguments, _columns(features))
            _check_model(model)
            if self._task.is_classifier:
                check_loss(model)
        except Exception as error:
            if shapes not in self._replicas and len(self._errors) < _MAX_REPLICAS:  # it depends on nothing else
                self._errors[shapes] = error
            raise
        return model


def _width(features: Sequence[Rows]) -> int | None:
    if any(rows.lengths or rows.data.dtype.hasobject for rows in features):
        return None
    return sum(int(np.prod(rows.data.shape[1:])) for rows in features)


def _columns(features: Sequence[Rows]) -> list[Column]:
    return [Column(each.name, (each.name,), each.dtype, each.dtype, len(each.dims)) for each in features]


def _check_model(model: Any) -> None:
    if keras_of(model) != "keras" or not callable(getattr(model, "train_step", None)):
        raise ConfigurationError(
            f"modelFn returned {a_type(model)}; with groupCol it must return a compiled model of Keras 3."
        )
    if getattr(model, "optimizer", None) is None:
        raise ConfigurationError("The model is not compiled. Call model.compile(optimizer, loss, ...) in modelFn.")
    if model.run_eagerly:
        raise ConfigurationError("The model is compiled with run_eagerly=True, but groups are trained in a graph.")


class _Replica:
    """One model, and the graph that trains it.

    Args:
        task: Describes the training.
        model: A compiled model.
        data: Rows of the kind that it will be trained on.
        callbacks: Returns the callbacks for one group, or None.
    """

    def __init__(self, task: GroupTask, model: Any, data: GroupData, callbacks: Callable[[], list[Any]] | None) -> None:
        self._task, self.model, self._callbacks = task, model, callbacks
        # Before it is used, as in a new process.
        self._seed, seeds = ensure_global_seed(), global_seed(model)
        first = [tf.identity(each.value) for each in seeds]
        loaded = from_keras(model)
        self.is_stacked = not task.is_single and stacks_columns(model, loaded.inputs.form, len(data.features))
        given = _columns(data.features)
        check_features(given, loaded.inputs, is_stacked=self.is_stacked)
        if not self.is_stacked:
            names = [each.name for each in given]
            check_input_names(names, loaded.inputs, is_single=task.is_single, by_order=True)
        features = self._features(data)
        self._arrange = arrangement(loaded.inputs, features, task.is_single or self.is_stacked, True)
        self.width = self._create_variables(features, data)
        variables = [*model.variables, *optimizer_variables(model.optimizer)]
        initial = [*first, *(tf.identity(variable.value) for variable in variables)]
        self._variables = [*seeds, *variables]
        self._reset = tf.function(lambda: _assign(self._variables, initial), autograph=False)
        self._graphs: dict[tuple[object, ...], TrainingGraph] = {}
        self.is_reusable = True

    def _features(self, data: GroupData) -> list[Rows]:
        return [stack(data.features)] if self.is_stacked else list(data.features)

    def _create_variables(self, features: Sequence[Rows], data: GroupData) -> int:
        """Create the variables of the model, its optimizer and its metrics, as the first step of ``fit`` does.

        Returns:
            The number of values that the model returns for a row.
        """
        inputs = self._arrange([tensor_of(rows.slice(0, 1)) for rows in features])
        labels = tensor_of(data.labels.slice(0, 1))
        outputs = self.model(inputs, training=False)
        self.model.compute_loss(inputs, labels, outputs, None)
        self.model.compute_metrics(inputs, labels, outputs, None)
        self.model.reset_metrics()
        self.model.optimizer.build(self.model.trainable_variables)
        if not isinstance(outputs, tf.Tensor) or outputs.shape.rank > 2:
            raise DataError("The model must have one output, of one or more numbers per row.")
        return int(outputs.shape[1]) if outputs.shape.rank == 2 else 1

    def train(self, data: GroupData) -> TrainedGroup:
        """Train from the initial weights."""
        self._reset()
        self.model.stop_training = False
        callbacks = [] if self._callbacks is None else list(self._callbacks())
        is_validation = np.zeros(data.num_rows, bool) if data.is_validation is None else data.is_validation
        chosen = np.flatnonzero(~is_validation).astype(np.int32)
        history = self._train_with(callbacks, self._runner(data, is_validation), chosen)
        return TrainedGroup([variable.numpy() for variable in self.model.weights], history)

    def _runner(self, data: GroupData, is_validation: npt.NDArray[np.bool_]) -> Callable[[Any], list[Logs]]:
        """Return a function that trains some epochs, given the order of the rows in each."""
        weights = data.weights or Rows("weight", np.ones(data.num_rows, np.float32))
        rows = [*self._features(data), data.labels, weights]
        graph = self._graph(rows)
        tensors = [tensor_of(each) for each in rows]
        tested = np.flatnonzero(is_validation).astype(np.int32)
        names = graph.names if len(tested) else graph.train_names

        def run(orders: npt.NDArray[Any]) -> list[Logs]:
            found = graph.function(orders, tested, *tensors).numpy()
            return [dict(zip(names, map(float, row), strict=False)) for row in found]

        return run

    def _train_with(
        self, callbacks: list[Any], run: Callable[[Any], list[Logs]], rows: npt.NDArray[np.int32]
    ) -> list[Logs]:
        orders, epochs = self._orders(rows), self._task.epochs
        if not callbacks:
            history: list[Logs] = []
            most = max(1, _MAX_ORDER // len(rows))
            while len(history) < epochs:
                history += run(orders(min(most, epochs - len(history))))
            self._finalize()
            return history
        import keras

        check_callbacks(callbacks, keras.callbacks.Callback, has_validation=self._task.has_validation)
        steps = -(-len(rows) // self._task.batch_size)
        listed = keras.callbacks.CallbackList(callbacks, model=self.model, epochs=epochs, steps=steps, verbose=0)
        listed.on_train_begin()
        history = []
        for epoch in range(epochs):
            listed.on_epoch_begin(epoch)
            logs = run(orders(1))[0]
            listed.on_epoch_end(epoch, logs)
            history.append({name: float(value) for name, value in logs.items()})
            if self.model.stop_training:
                break
        self._finalize()
        listed.on_train_end(history[-1])
        return history

    def _finalize(self) -> None:
        if getattr(self.model.optimizer, "use_ema", False):
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    def _orders(self, rows: npt.NDArray[np.int32]) -> Callable[[int], npt.NDArray[Any]]:
        """Return a function that gives the orders of the rows in the next epochs, ``[epochs, rows]``."""
        generator = np.random.default_rng(self._task.seed)

        def following(count: int) -> npt.NDArray[Any]:
            each = [generator.permutation(rows) if self._task.shuffle else rows for _ in range(count)]
            return np.stack(each)

        return following

    def _graph(self, rows: Sequence[Rows]) -> TrainingGraph:
        key = tuple((each.dtype, each.dims, len(each.lengths)) for each in rows)
        if key not in self._graphs:
            use_seed(self._seed)  # another trainer may have set its own
            graph = TrainingGraph(self.model, self._arrange, self._task, [type_spec_of(each) for each in rows])
            self.is_reusable = self.is_reusable and not graph.has_stateful_random
            self._graphs[key] = graph
            self._reset()  # tracing may have changed variables
        return self._graphs[key]


def _assign(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
