"""The graph that trains one model for several epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ...errors import ConfigurationError
from .spec import GroupTask

# Operations whose numbers depend on what the process computed before. Keras' own layers use stateless ones.
_STATEFUL_RANDOM = {
    "Multinomial", "ParameterizedTruncatedNormal", "RandomGamma", "RandomPoissonV2", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal",
}  # fmt: skip


class TrainingGraph:
    """A graph that trains epochs.

    Args:
        model: The model.
        arrange: Makes the model's argument of the tensors of the features.
        task: Describes the training.
        specs: The types of features, labels and weights.

    Attributes:
        function: Takes the order of the rows in each epoch, ``[epochs, rows]``, the numbers of the validation rows,
            and tensors of all rows. Returns the logs, ``[epochs, names]``.
        names: The names of the logs.
        train_names: Those of training, which come first.
        has_stateful_random: Whether it contains random numbers that depend on what was computed before.
    """

    def __init__(
        self,
        model: Any,
        arrange: Callable[[Sequence[Any]], object],
        task: GroupTask,
        specs: Sequence[tf.TypeSpec],
    ) -> None:
        self._model, self._arrange, self._task = model, arrange, task
        self._train = tf.function(self._step_of(model.train_step), input_signature=specs, autograph=False)
        self._test = tf.function(self._step_of(model.test_step), input_signature=specs, autograph=False)
        self.train_names = _outputs_of(self._train)
        self._test_names = _outputs_of(self._test) if task.has_validation else []
        self.names = [*self.train_names, *(f"val_{name}" for name in self._test_names)]
        signature = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32), *specs]
        self.function = tf.function(self._epochs, input_signature=signature, autograph=False)
        used = self.function.get_concrete_function().graph.as_graph_def()
        kinds = {node.op for node in used.node}
        kinds |= {node.op for each in used.library.function for node in each.node_def}
        self.has_stateful_random = bool(kinds & _STATEFUL_RANDOM)

    def _step_of(self, step: Callable[[Any], Mapping[str, Any]]) -> Callable[..., dict[str, Any]]:
        def run(*tensors: Any) -> dict[str, Any]:
            *features, labels, weights = tensors
            data = (self._arrange(features), labels, *([weights] if self._task.has_weights else []))
            logs = step(data)
            return {name: tf.cast(value, tf.float32) for name, value in logs.items() if _is_scalar(value)}

        return run

    def _epochs(self, orders: tf.Tensor, tested: tf.Tensor, *tensors: Any) -> tf.Tensor:
        count = tf.shape(orders)[0]

        def body(epoch: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            logs = self._one_pass(self._train, self.train_names, orders[epoch], tensors)
            if self._test_names:
                logs = tf.concat([logs, self._one_pass(self._test, self._test_names, tested, tensors)], 0)
            return epoch + 1, found.write(epoch, logs)

        found = tf.TensorArray(tf.float32, count, element_shape=[len(self.names)])
        # Iterations run one after the other, because each updates the variables.
        _, found = tf.while_loop(lambda epoch, _: epoch < count, body, (0, found), parallel_iterations=1)
        return found.stack()

    def _one_pass(self, step: Any, names: Sequence[str], order: tf.Tensor, tensors: Sequence[Any]) -> tf.Tensor:
        """Run the steps of one pass over the rows; return the logs of the last one."""
        self._model.reset_metrics()
        count, batch = tf.shape(order)[0], self._task.batch_size

        def body(start: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = order[start : start + batch]
            logs = step(*(tf.gather(tensor, chosen) for tensor in tensors))
            return start + batch, tf.stack([logs[name] for name in names])

        empty = tf.fill([len(names)], np.float32("nan"))
        _, logs = tf.while_loop(lambda start, _: start < count, body, (0, empty), parallel_iterations=1)
        return logs


def _outputs_of(step: Any) -> list[str]:
    names: list[str] = list(step.get_concrete_function().structured_outputs)
    if not names:
        raise ConfigurationError("The model's train_step or test_step returns no logs. Return a dict with the loss.")
    return names


def _is_scalar(value: Any) -> bool:
    return getattr(value, "shape", None) is not None and tf.TensorShape(value.shape).rank == 0
