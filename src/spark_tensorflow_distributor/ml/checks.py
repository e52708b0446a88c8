"""Checks of models and labels that single trainings and those of groups share. Pure."""

from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import numpy.typing as npt


def check_compiled(model: Any) -> None:
    """Check that ``Model.fit`` can train a model.

    Raises:
        ConfigurationError: It is not compiled.
    """
    if getattr(model, "optimizer", None) is None:
        raise ConfigurationError(
            "The model is not compiled. Call model.compile(optimizer, loss, metrics=[...]) in modelFn, or before you "
            "pass the model; or train it with fitFn."
        )


def check_label_width(label: str, given: int | None, width: int | None) -> None:
    """Check that a regressor has an output for each number of a label; Keras would broadcast one to the other.

    Args:
        label: The column of labels, for the message.
        given: How many numbers a label has; None if that varies or is not known.
        width: How many numbers the model returns for a row; None if it is not known.

    Raises:
        DataError: They differ.
    """
    if width is not None and given is not None and given != width:
        raise DataError(
            f"The label column {label!r} has {given} numbers a row, but the model's output has {width}. Give "
            "its last layer as many units, or select other labels."
        )


def check_classes(label: str, values: "npt.NDArray[Any]", limit: int | None) -> None:
    """Check that a classifier's labels are indices of classes.

    Args:
        label: The column of labels, for the message.
        values: The labels.
        limit: The number of the model's classes; None if it is not known.

    Raises:
        DataError: One is not.
    """
    wrong = values[(values != values.round()) | (values < 0) | ((values >= limit) if limit else False)]
    if len(wrong):
        most = "..." if limit is None else f"{limit - 1} (the model's classes)"
        raise DataError(
            f"The label column {label!r} contains {wrong[0]:g}; a classifier's labels are whole numbers "
            f"from 0 to {most}. Index other values with StringIndexer of pyspark.ml, or give the model's last "
            "layer more units. For numbers that are no classes, use KerasRegressor."
        )


def stacks_columns(model: Any, form: str, num_columns: int) -> bool:
    """Return whether the columns of ``inputCols`` go into the model side by side.

    Args:
        model: The Keras model.
        form: What it is called with; see ``Inputs.form``.
        num_columns: The number of columns.
    """
    is_sequential = any(base.__name__ == "Sequential" for base in type(model).__mro__)
    return (form == "tensor" and num_columns > 1) or (is_sequential and form == "unknown")
