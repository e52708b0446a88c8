"""All that a training is: variables, metrics, random generators and callbacks, as plain arrays, and back.

Variables of a group are copies of one on every rank, or each rank has a part of its own (metrics, the moving statistics
of tf_keras): those are summed or averaged over the ranks, as TensorFlow does when it reads them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..training.keras_api import is_keras_3
from ..training.patches.layer_state import average_state
from ..training.random_state import global_seed


class ModelState:
    """The variables of a model that is being trained.

    Args:
        model: of Keras 3 or tf_keras.
        strategy: under which it was made.
        is_chief: whether this is rank 0, which keeps the sum of what is summed over the ranks.
    """

    def __init__(self, model: Any, strategy: Any, is_chief: bool) -> None:
        self._model, self._strategy, self._is_chief = model, strategy, is_chief

    def build(self) -> None:
        """Create the optimizer's variables, which Keras else does in the first step."""
        optimizer = getattr(self._model, "optimizer", None)
        if optimizer is None or getattr(optimizer, "built", False) is True:
            return
        with self._strategy.scope():
            if hasattr(optimizer, "build"):
                optimizer.build(self._model.trainable_variables)
            elif hasattr(optimizer, "_create_all_weights"):  # tf_keras' legacy optimizers
                optimizer._create_all_weights(self._model.trainable_variables)

    def put_together(self) -> None:
        """Make the state of layers the same on all ranks; every rank has to call.

        Of moving statistics each rank of Keras 3 has its own. They are averages, so they come to the same whether their
        mean over the ranks is taken now as well, or at the end of the epoch alone.
        """
        if is_keras_3(self._model):
            import tensorflow as tf

            average_state(tf, self._model)

    @property
    def weights(self) -> list[Any]:
        """Variables of model and optimizer, seeds among them, in an order that a new process has, too."""
        optimizer = getattr(self._model, "optimizer", None)
        own = getattr(optimizer, "variables", ())
        variables = [*self._model.variables, *(own() if callable(own) else own), *global_seed(self._model)]
        variables += _loss_scale(optimizer)
        if hasattr(self._model, "_train_counter"):
            variables.append(self._model._train_counter)
        metrics = {id(each) for each in self.metrics}
        return [each for each in _unique(variables) if id(each) not in metrics]

    @property
    def metrics(self) -> list[Any]:
        """Variables of the metrics, which begin anew with each epoch."""
        return _unique(variable for metric in self._model.metrics for variable in metric.variables)

    def own_part(self) -> list[np.ndarray]:
        """What this rank alone has: its parts of the variables that are summed or averaged over the ranks."""
        return [self._local(variable) for variable in self.weights + self.metrics if _is_partial(variable)]

    def capture(self, parts: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        """All variables.

        Args:
            parts: of all ranks, each as :meth:`own_part` gave them.
        """
        values = iter([list(of_ranks) for of_ranks in zip(*parts, strict=True)])

        def value(variable: Any) -> np.ndarray:
            return _merged(variable, next(values)) if _is_partial(variable) else self._local(variable)

        return {"weights": [value(each) for each in self.weights], "metrics": [value(each) for each in self.metrics]}

    def restore_weights(self, values: Sequence[np.ndarray], described: Sequence[Sequence[Any]]) -> None:
        """Set the variables of model and optimizer.

        Raises:
            CheckpointError: the model is another one.
        """
        variables = self.weights
        mine = describe(variables)
        if [each[1:] for each in mine] != [list(each[1:]) for each in described]:
            raise CheckpointError(_difference(mine, described))
        for variable, value in zip(variables, values, strict=True):
            self._assign(variable, value)

    def restore_metrics(self, values: Sequence[np.ndarray], *, after_a_step: bool = False) -> bool:
        """Set the metrics; False where they do not exist yet (tf_keras makes them in the first step).

        Args:
            after_a_step: they hold what that one step gave, which is to be added.
        """
        variables = self.metrics
        if len(variables) != len(values):
            return False
        for variable, value in zip(variables, values, strict=True):
            self._assign(variable, value, add=after_a_step)
        return True

    def _local(self, variable: Any) -> np.ndarray:
        parts = [np.asarray(each.numpy()) for each in self._components(variable)]
        return _merged(variable, parts) if _is_partial(variable) and len(parts) > 1 else parts[0]

    def _components(self, variable: Any) -> Sequence[Any]:
        components: Sequence[Any] = self._strategy.experimental_local_results(_tf_variable(variable))
        return components

    def _assign(self, variable: Any, value: np.ndarray, *, add: bool = False) -> None:
        is_sum = _is_partial(variable) and _aggregation(variable) == "SUM"
        for place, component in enumerate(self._components(variable)):
            share = value if not is_sum or (self._is_chief and place == 0) else np.zeros_like(value)
            component.assign(component.numpy() + share if add else share)


def describe(variables: Iterable[Any]) -> list[list[Any]]:
    """Name, shape and type of each."""
    return [
        [str(each.name if _is_tensorflows(each) else each.path), [int(size) for size in each.shape], _dtype_name(each)]
        for each in variables
    ]


def _difference(mine: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]) -> str:
    if len(mine) != len(theirs):
        found = f"{len(theirs)} variables, and this model and its optimizer have {len(mine)}"
    else:
        own, other = next((a, b) for a, b in zip(mine, theirs, strict=True) if list(a[1:]) != list(b[1:]))
        found = f"a variable {other[0]} {other[1]} {other[2]}, where this model has {own[0]} {own[1]} {own[2]}"
    return f"It is of another model: it holds {found}."


def _dtype_name(variable: Any) -> str:
    dtype = variable.dtype
    return str(getattr(dtype, "name", dtype))


def _unique(variables: Iterable[Any]) -> list[Any]:
    return list({id(each): each for each in map(_not_cast, variables)}.values())


def _tf_variable(variable: Any) -> Any:
    """TensorFlow's variable in Keras 3's."""
    return variable if _is_tensorflows(variable) else variable.value


def _not_cast(variable: Any) -> Any:
    """The variable in one that tf_keras casts for mixed precision."""
    return variable._variable if type(variable).__module__.startswith("tf_keras.") else variable


def _loss_scale(optimizer: Any) -> list[Any]:
    """What a LossScaleOptimizer of tf_keras keeps beside its variables."""
    return list(getattr(getattr(optimizer, "_loss_scale", None), "_weights", {}).values())


def _is_tensorflows(variable: Any) -> bool:
    # By its type: to ask such a variable for an attribute that it lacks may read it, which is a collective.
    return type(variable).__module__.startswith("tensorflow.")


def _is_partial(variable: Any) -> bool:
    inner = _tf_variable(variable)
    return getattr(getattr(inner, "synchronization", None), "name", "") == "ON_READ" and hasattr(inner, "values")


def _aggregation(variable: Any) -> str:
    return str(getattr(getattr(_tf_variable(variable), "aggregation", None), "name", "NONE"))


def _merged(variable: Any, parts: Sequence[np.ndarray]) -> np.ndarray:
    kind = _aggregation(variable)
    if kind == "SUM":
        return np.asarray(np.sum(parts, axis=0, dtype=parts[0].dtype))
    if kind == "MEAN":
        return np.mean(parts, axis=0, dtype=np.float64).astype(parts[0].dtype)
    return parts[0]
