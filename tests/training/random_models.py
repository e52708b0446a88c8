"""Small trainings: their choices, and how one is built and run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from spark_tensorflow_distributor.training.replica import ReplicaStrategy

STEPS, WORDS, CLASSES = 4, 7, 3


@dataclasses.dataclass(frozen=True, repr=False)
class Training:
    """One training. Each field is a choice; the defaults are the simplest choices."""

    replicas: int = 2
    batch: int = 4
    rows: int = 8
    epochs: int = 1
    inputs: str = "features"
    layers: tuple[str, ...] = ()
    head: str = "numbers"
    loss: str = "mse"
    reduction: str = "sum_over_batch_size"
    added: tuple[str, ...] = ()
    second_output: bool = False
    optimizer: str = "SGD"
    options: tuple[tuple[str, Any], ...] = ()
    metrics: tuple[str, ...] = ()
    weighting: str = "none"
    validation_rows: int = 0
    data: str = "arrays"
    steps_per_execution: int = 1
    eager: bool = True
    then: str = ""
    reads_steps: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        chosen = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        default = {each.name: each.default for each in dataclasses.fields(self)}
        return f"Training({', '.join(f'{name}={chosen[name]!r}' for name in chosen if chosen[name] != default[name])})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # for Hypothesis
        printer.text(repr(self))


class Positions(keras.layers.Layer):
    """Adds a vector for each position, the same for all rows."""

    def build(self, shape: Any) -> None:
        self.table = keras.layers.Embedding(shape[1], shape[2], embeddings_initializer="uniform")
        self.table.build((None,))
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return inputs + self.table(tf.range(tf.shape(inputs)[1]))


class SelfAttention(keras.layers.Layer):
    """Attends to the row itself."""

    def build(self, shape: Any) -> None:
        self.attention = keras.layers.MultiHeadAttention(2, 2)
        self.attention.build(shape, shape)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return self.attention(inputs, inputs)


class AddedLoss(keras.layers.Layer):
    """Adds a loss: a mean over the rows, a number per row, or a number that does not depend on the rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.supports_masking = kind, True

    def call(self, inputs: Any) -> Any:
        by_row = 0.1 * tf.reduce_sum(tf.reshape(tf.square(inputs), [tf.shape(inputs)[0], -1]), axis=1)
        self.add_loss({"mean": tf.reduce_mean(by_row), "vector": by_row, "constant": 0.3 * tf.ones(())}[self.kind])
        return inputs


class Largest(keras.metrics.Metric):
    """A custom metric: the sum of squares of the predictions, per row."""

    def __init__(self, name: str = "squares") -> None:
        super().__init__(name=name)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(tf.reduce_sum(tf.square(tf.cast(y_pred, self.total.dtype))))
        self.count.assign_add(tf.cast(tf.shape(y_pred)[0], self.count.dtype))

    def result(self) -> Any:
        return self.total / self.count


LAYERS_OF_VECTORS: dict[str, Callable[[], Any]] = {
    "dense": lambda: keras.layers.Dense(4, "tanh"),
    "regularised": lambda: keras.layers.Dense(
        3, "tanh", kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2"
    ),
    "batch norm": lambda: keras.layers.BatchNormalization(synchronized=True, epsilon=0.1),
    "layer norm": lambda: keras.layers.LayerNormalization(epsilon=0.1),
    "dropout": lambda: keras.layers.Dropout(0.3),
    "noise": lambda: keras.layers.GaussianNoise(0.2),
}
LAYERS_OF_SERIES: dict[str, Callable[[], Any]] = {
    "convolution": lambda: keras.layers.Conv1D(4, 2, padding="same", activation="tanh"),
    "lstm": lambda: keras.layers.LSTM(3, return_sequences=True),
    "gru": lambda: keras.layers.GRU(3, return_sequences=True),
    "positions": lambda: Positions(),
    "attention": lambda: SelfAttention(),
    "spatial dropout": lambda: keras.layers.SpatialDropout1D(0.5),
    **{name: LAYERS_OF_VECTORS[name] for name in ("dense", "batch norm", "layer norm", "dropout")},
}
SUMMARIES: dict[str, Callable[[], Any]] = {
    "flatten": lambda: keras.layers.Flatten(),
    "average": lambda: keras.layers.GlobalAveragePooling1D(),
    "last lstm": lambda: keras.layers.LSTM(3),
    "each": lambda: keras.layers.Activation("linear"),  # an output for each step of the series
}


def squares_by_row(y_true: Any, y_pred: Any) -> Any:
    return tf.reduce_mean(tf.square(tf.cast(y_true, y_pred.dtype) - y_pred), axis=-1)


def squares_as_number(y_true: Any, y_pred: Any) -> Any:
    return tf.reduce_mean(tf.square(tf.cast(y_true, y_pred.dtype) - y_pred))


Reduced = Callable[[str], Any]
LOSSES: dict[str, dict[str, Reduced]] = {
    "numbers": {
        "mse": lambda reduction: keras.losses.MeanSquaredError(reduction),
        "mae": lambda reduction: keras.losses.MeanAbsoluteError(reduction),
        "huber": lambda reduction: keras.losses.Huber(reduction=reduction),
        "by row": lambda _: squares_by_row,
        "number": lambda _: squares_as_number,
    },
    "binary": {
        "crossentropy": lambda reduction: keras.losses.BinaryCrossentropy(reduction=reduction),
        "focal": lambda reduction: keras.losses.BinaryFocalCrossentropy(reduction=reduction),
    },
    "classes": {
        "sparse": lambda reduction: keras.losses.SparseCategoricalCrossentropy(reduction=reduction),
    },
    "one hot": {
        "categorical": lambda reduction: keras.losses.CategoricalCrossentropy(reduction=reduction),
        "kl": lambda reduction: keras.losses.KLDivergence(reduction=reduction),
    },
}
METRICS: dict[str, dict[str, Callable[[], Any]]] = {
    "numbers": {
        "mae": lambda: "mae",
        "rmse": lambda: keras.metrics.RootMeanSquaredError(),
        "r2": lambda: keras.metrics.R2Score(),
        "squares": lambda: Largest(),
        "scalar": lambda: squares_as_number,
    },
    "binary": {
        "accuracy": lambda: "accuracy",
        "auc": lambda: keras.metrics.AUC(num_thresholds=20),
        "true positives": lambda: keras.metrics.TruePositives(),
        "precision": lambda: keras.metrics.Precision(),
        "squares": lambda: Largest(),
    },
    "classes": {"accuracy": lambda: "accuracy", "top 2": lambda: keras.metrics.SparseTopKCategoricalAccuracy(2)},
    "one hot": {
        "accuracy": lambda: "accuracy",
        "f1": lambda: keras.metrics.F1Score(),
        "auc": lambda: keras.metrics.AUC(num_thresholds=20, multi_label=True, num_labels=CLASSES),
    },
}
HEADS: dict[str, tuple[int, str]] = {
    "numbers": (2, "linear"),
    "binary": (1, "sigmoid"),
    "classes": (CLASSES, "softmax"),
    "one hot": (CLASSES, "softmax"),
}
# Epsilons that are not tiny, so that the last digit of a gradient near zero does not determine an update.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.1, "momentum": 0.9},
    "Adam": {"learning_rate": 0.05, "epsilon": 1e-2},
    "AdamW": {"learning_rate": 0.05, "epsilon": 1e-2, "weight_decay": 0.01},
    "RMSprop": {"learning_rate": 0.05, "epsilon": 1e-2, "centered": True},
    "Adagrad": {"learning_rate": 0.1},
    "Adadelta": {"learning_rate": 1.0, "epsilon": 1e-2},
    "Ftrl": {"learning_rate": 0.1},
    "Lion": {"learning_rate": 0.01},
    "Adafactor": {"learning_rate": 0.05},
}


def build(training: Training) -> Any:
    """Return the compiled model."""
    keras.utils.set_random_seed(training.seed)
    if training.inputs == "features":
        given = value = keras.Input((5,))
    elif training.inputs == "series":
        given = value = keras.Input((STEPS, 3))
    else:
        given = keras.Input((STEPS,), dtype="int32")
        value = keras.layers.Embedding(WORDS, 3, mask_zero=training.inputs == "masked words")(given)
    for name in training.layers:
        value = {**LAYERS_OF_VECTORS, **LAYERS_OF_SERIES, **SUMMARIES}[name]()(value)
    for kind in training.added:
        value = AddedLoss(kind)(value)
    size, activation = HEADS[training.head]
    outputs = [keras.layers.Dense(size, activation, name="first")(value)]
    losses: list[Any] = [LOSSES[training.head][training.loss](training.reduction)]
    metrics: list[Any] = [[METRICS[training.head][name]() for name in training.metrics]]
    if training.second_output:
        outputs.append(keras.layers.Dense(2, name="second")(value))
        losses.append(keras.losses.MeanSquaredError(training.reduction))
        metrics.append([keras.metrics.MeanAbsoluteError()])
    is_single = len(outputs) == 1
    model = keras.Model(given, outputs[0] if is_single else outputs)
    options = OPTIMIZERS[training.optimizer] | dict(training.options)
    model.compile(
        getattr(keras.optimizers, training.optimizer)(**options),
        losses[0] if is_single else losses,
        loss_weights=None if is_single else [1.0, 0.5],
        metrics=metrics[0] if is_single else metrics,
        run_eagerly=training.eager,
        steps_per_execution=training.steps_per_execution,
        jit_compile=False,
    )
    return model


def rows_of(training: Training, rows: int, seed: int) -> tuple[Any, Any, Any]:
    """Return inputs, labels, and the weights of the rows (None without weights)."""
    random = np.random.default_rng(seed)
    shape = [rows, STEPS] if training.layers[-1:] == ("each",) else [rows]
    if training.inputs == "features":
        x = random.normal(size=(rows, 5)).astype("float32")
    elif training.inputs == "series":
        x = random.normal(size=(rows, STEPS, 3)).astype("float32")
    else:
        x = random.integers(0, WORDS, (rows, STEPS)).astype("int32")
        x[:, 0] = np.maximum(x[:, 0], 1)  # a row with nothing but padding has no mean
    y = {
        "numbers": lambda: random.normal(size=(*shape, 2)).astype("float32"),
        "binary": lambda: random.integers(0, 2, (*shape, 1)).astype("float32"),
        "classes": lambda: random.integers(0, CLASSES, shape).astype("int32"),
        "one hot": lambda: np.eye(CLASSES, dtype="float32")[random.integers(0, CLASSES, shape)],
    }[training.head]()
    if training.second_output:
        y = (y, random.normal(size=(rows, 2)).astype("float32"))
    weights = random.uniform(0.2, 2, shape).astype("float32") if training.weighting == "rows" else None
    return x, y, weights


class StepLogs(keras.callbacks.Callback):
    """Keeps the logs of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.found.append({name: np.asarray(value) for name, value in (logs or {}).items()})


def _data(training: Training, rows: tuple[Any, Any, Any], batch: int) -> dict[str, Any]:
    x, y, weights = rows
    if training.data == "arrays" or training.weighting == "classes":
        return {"x": x, "y": y, "sample_weight": weights, "batch_size": batch}
    elements = (x, y) if weights is None else (x, y, weights)
    dataset = tf.data.Dataset.from_tensor_slices(elements).batch(batch)
    if training.data.startswith("own rows") and len(x) >= training.replicas:
        return {"x": _own_rows(training, elements, batch)}
    if training.data == "unknown length":
        return {"x": dataset.filter(lambda *_: True)}
    if training.data == "generator":
        spec = dataset.element_spec
        return {"x": tf.data.Dataset.from_generator(functools.partial(iter, dataset), output_signature=spec)}
    return {"x": dataset}


def _own_rows(training: Training, elements: Any, batch: int) -> tf.data.Dataset:
    """Return the rows of this replica alone or, for one process, the batches of all replicas together."""
    # The first replica has more rows than the others, which run out earlier.
    rows, replicas = len(elements[0]), training.replicas
    counts = [1 + (rows - replicas) // 2 // replicas] * replicas
    counts[0] += rows - sum(counts)
    ends = np.cumsum(counts)
    owned = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, ReplicaStrategy):
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        mine = tree.map_structure(lambda each: each[owned[strategy.collectives.rank]], elements)
        dataset = tf.data.Dataset.from_tensor_slices(mine).batch(batch).with_options(options)
        return dataset.filter(lambda *_: True) if training.data.endswith("of unknown length") else dataset
    each = -(-batch // replicas)
    steps = [np.concatenate([rows[at : at + each] for rows in owned]) for at in range(0, max(counts), each)]
    taken = [tree.map_structure(lambda array: array[step], elements) for step in steps]  # noqa: B023
    spec = tf.data.Dataset.from_tensor_slices(elements).batch(batch).element_spec
    dataset = tf.data.Dataset.from_generator(lambda: iter(taken), output_signature=spec)
    if training.data.endswith("of unknown length"):
        return dataset
    return dataset.apply(tf.data.experimental.assert_cardinality(len(taken)))  # else, Keras counts an extra step


def run(training: Training, model: Any) -> dict[str, Any]:
    """Train, evaluate and predict; return all numbers by name."""
    rows = rows_of(training, training.rows, training.seed)
    others = rows_of(training, training.validation_rows or 3, training.seed + 1)
    callback = StepLogs()
    arguments = _data(training, rows, training.batch)
    if training.weighting == "classes":
        arguments["class_weight"] = {0: 0.5, 1: 2.0, 2: 1.5}
    if training.validation_rows:
        arguments["validation_data"] = others[: 3 if training.weighting == "rows" else 2]
        arguments["validation_batch_size"] = 3
    history = model.fit(
        **arguments,
        epochs=training.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[callback] if training.reads_steps else [],
    )
    found: dict[str, Any] = {f"history {name}": np.array(values) for name, values in history.history.items()}
    for number, logs in enumerate(callback.found):
        found |= {f"step {number} {name}": value for name, value in logs.items() if name == "loss"}
    for index, variable in enumerate(model.weights):
        found[f"weight {index} {variable.path}"] = variable.numpy()
    for index, variable in enumerate(model.optimizer.variables):
        found[f"slot {index} {variable.path}"] = variable.numpy()
    if training.then == "evaluate":
        evaluated = model.evaluate(**_data(training, others, 2), verbose=0, return_dict=True)
        found |= {f"evaluated {name}": np.array(value) for name, value in evaluated.items()}
    if training.then == "predict":
        predicted = model.predict(rows[0], batch_size=training.batch, verbose=0)
        found |= {f"predicted {index}": each for index, each in enumerate(tree.flatten(predicted))}
    return found
