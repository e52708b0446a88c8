"""What the driver sends to the workers to train a model, and what comes back. Pure."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError
from ..formatting import sentence

# What modelFn and fitFn may name among their arguments.
OFFERED_TO_MODEL_FN = ("num_features", "num_classes", "train_data")
OFFERED_TO_FIT_FN = (
    *("train_data", "validation_data", "feature_columns", "label_column", "weight_column", "model", "callbacks"),
    *("batch_size", "epochs", "seed", "num_features", "num_classes"),
)


@dataclass(frozen=True)
class TrainingTask:
    """Describes what to train, apart from the user's functions and the rows.

    Attributes:
        features: The feature column, or the list of columns for the model's inputs.
        label: The label column.
        weight: The weight column; None if all rows weigh 1.
        batch_size: Rows per step on all workers together.
        epochs: Passes over the rows.
        seed: Determines initial weights, dropout and the order of the rows.
        is_classifier: Whether the labels are class indices.
        num_classes: The number of classes if it is known, else None.
    """

    features: str | list[str]
    label: str
    weight: str | None
    batch_size: int
    epochs: int
    seed: int
    is_classifier: bool
    num_classes: int | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, as bytes: the driver needs no TensorFlow to keep, save and apply it.

    Attributes:
        archive: The content of a ``.keras`` file.
        custom_objects: The pickled dict of the user's own classes and functions in it, by name; ``b""`` for none.
        library: The package that wrote it, ``"keras"`` or ``"tf_keras"``.
        stack: Whether the model takes its input columns side by side in one tensor.
        width: The number of values that it returns for a row; None if it does not declare it.
        gives_logits: Whether these are logits instead of probabilities.
        history: The metrics of each epoch of ``fit``, by name.
        versions: Versions of the software that wrote it, by name.
    """

    archive: bytes
    custom_objects: bytes = b""
    library: str = "keras"
    stack: bool = False
    width: int | None = None
    gives_logits: bool = False
    history: Mapping[str, list[float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def arguments_for(
    name: str, function: Callable[..., Any], params: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments for a user's function: all of ``params``, and those of ``offered`` that it names.

    Args:
        name: The Param that holds the function, for the message.
        function: The function.
        params: The value of ``modelParams``.
        offered: What else it may take, by name; ``params`` take precedence.

    Raises:
        ConfigurationError: The function cannot be called with these arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(params)
    named = {
        each.name
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    arguments = {**{key: value for key, value in offered.items() if key in named}, **params}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        shown = getattr(function, "__name__", repr(function))
        more = f", and may take {', '.join(offered)}" if offered else ""
        raise ConfigurationError(
            f"{name}: {shown}{signature} cannot be called: {sentence(error)} It gets the values of modelParams "
            f"({', '.join(params) or 'empty'}) by keyword{more}."
        ) from None
    return arguments


def named_by(function: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the ``params`` that a function takes: all of them if it has ``**kwargs``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(params)
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict(params)
    names = {each.name for each in parameters}
    return {key: value for key, value in params.items() if key in names}
