"""Checks of models, columns and labels that single trainings and those of groups share. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.checks import Advice
from ..data.columns import Column, nearest
from ..errors import ConfigurationError, DataError
from ..formatting import one_line, sentence
from ..inference.features import Inputs

if TYPE_CHECKING:
    import numpy.typing as npt

OF_FEATURES = Advice(
    nulls="Fill them in Spark (Imputer of pyspark.ml, DataFrame.fillna), or drop the rows (dropna).",
    ragged="Pad or cut them to one length in Spark; or set fitFn, whose to_tf can pad them or make RaggedTensors.",
)
OF_LABELS = Advice(
    nulls="Drop these rows in Spark (DataFrame.dropna), or fill the nulls (fillna).",
    ragged="Select rows of one length.",
)


def check_compiled(model: Any) -> None:
    """Check that ``Model.fit`` can train a model.

    Raises:
        ConfigurationError: The model is not compiled.
    """
    if getattr(model, "optimizer", None) is None:
        raise ConfigurationError(
            "The model is not compiled. Call model.compile(optimizer, loss, metrics=[...]) in modelFn, or before you "
            "pass the model; or train it with fitFn."
        )


def check_label_width(label: str, given: int | None, width: int | None) -> None:
    """Check that a regressor has an output for each number of a label; Keras would broadcast one to the other.

    Args:
        label: The label column, for the message.
        given: How many numbers a label has; None if that varies or is not known.
        width: How many numbers the model returns for a row; None if it is not known.

    Raises:
        DataError: The numbers differ.
    """
    if width is not None and given is not None and given != width:
        raise DataError(
            f"The label column {label!r} has {given} numbers per row, but the model's output has {width}. Give "
            "its last layer as many units, or select other labels."
        )


def check_classes(label: str, values: "npt.NDArray[Any]", limit: int | None) -> None:
    """Check that a classifier's labels are indices of classes.

    Args:
        label: The label column, for the message.
        values: The labels.
        limit: The number of the model's classes; None if it is not known.

    Raises:
        DataError: A label is not the index of a class.
    """
    wrong = values[(values != values.round()) | (values < 0) | ((values >= limit) if limit else False)]
    if len(wrong):
        most = "..." if limit is None else f"{limit - 1} (the model's classes)"
        raise DataError(
            f"The label column {label!r} contains {wrong[0]:g}; a classifier's labels are whole numbers "
            f"from 0 to {most}. Index other values with StringIndexer of pyspark.ml, or give the model's last "
            "layer more units. To predict numbers, use KerasRegressor."
        )


def check_weights(subject: str, values: Any) -> None:
    """Check the weights of rows.

    Args:
        subject: The column, for the message.
        values: An array of the weights.

    Raises:
        DataError: A weight is negative or NaN.
    """
    is_valid = values >= 0
    if not is_valid.all():
        raise DataError(f"{subject} contains {values[~is_valid][0]:g}; weights must not be negative or NaN.")


def check_features(columns: Sequence[Column], inputs: Inputs, *, is_stacked: bool) -> None:
    """Check that text goes to inputs that take text, and that other inputs get numbers.

    Args:
        columns: The feature columns.
        inputs: The model's inputs.
        is_stacked: Whether the columns go side by side into one tensor.

    Raises:
        DataError: A column does not suit its input.
    """
    by_name = {each.name: each for each in inputs.inputs}
    is_only = len(columns) == len(inputs.inputs) == 1
    for column in columns:
        subject = f"The feature column {column.name!r} is of type {column.spark_type}"
        wanted = inputs.inputs[0] if is_only else by_name.get(column.name)
        if is_stacked:
            if not column.is_number:
                raise DataError(
                    f"{subject}, but the model's only input takes numbers. {remedy(column, is_stacked=True)}"
                )
        elif wanted is not None and wanted.dtype and (wanted.dtype == "string") != column.is_bytes:
            advice = remedy(column, is_stacked=False) if column.is_bytes else "Cast it to string in Spark."
            raise DataError(f"{subject}, but the model's input is {wanted}. {advice}")


def remedy(column: Column, *, is_stacked: bool) -> str:
    """Return what to do with a column that an input of numbers cannot take.

    Args:
        column: The column.
        is_stacked: Whether the input takes all columns side by side.
    """
    if not column.is_bytes:
        return "Convert it to a number in Spark, or leave it out."
    own = "give each column of inputCols an input of its name, this one" if is_stacked else "let the model do that: use"
    return (
        f"Convert it to numbers in Spark (StringIndexer and OneHotEncoder of pyspark.ml), or {own} "
        f"keras.Input((), name={column.name!r}, dtype='string') with StringLookup or TextVectorization after it."
    )


def call_model_fn(function: Callable[..., Any], arguments: Mapping[str, Any], columns: Sequence[Column]) -> Any:
    """Call the user's function that builds the model.

    Args:
        function: The function.
        arguments: Its arguments.
        columns: The feature columns.

    Raises:
        DataError: The function fails, perhaps because text columns leave it without a number of features.
    """
    try:
        return function(**arguments)
    except Exception as error:
        text = next((each for each in columns if each.is_bytes), None)
        if text is None or arguments.get("num_features", 0) is not None:
            raise
        raise DataError(
            f"modelFn failed: {sentence(one_line(error))} It got num_features=None, because the feature column "
            f"{text.name!r} is of type {text.spark_type}. {remedy(text, is_stacked=True)}"
        ) from error


def check_input_names(names: Sequence[str], inputs: Inputs, *, is_single: bool, by_order: bool) -> None:
    """Check that a model of several inputs gets a column for each.

    Args:
        names: The names of the columns.
        inputs: The model's inputs.
        is_single: Whether the column is that of ``featuresCol``.
        by_order: Whether columns may be matched to inputs by order if no names agree.

    Raises:
        DataError: The columns do not match the inputs.
    """
    wanted = [each.name for each in inputs.inputs]
    if len(wanted) < 2 or set(names) == set(wanted):
        return
    if is_single:
        raise DataError(
            f"The model has {len(wanted)} inputs ({inputs}), but featuresCol gives one tensor. Set inputCols to "
            "columns with the names of the inputs."
        )
    if by_order and inputs.form == "list" and len(names) == len(wanted) and not set(names) & set(wanted):
        return
    lacks = [f"The input {each!r} gets no column{nearest(each, names)}." for each in wanted if each not in names]
    extra = [f"The column {each!r} is not an input{nearest(each, wanted)}." for each in names if each not in wanted]
    raise DataError(
        f"The model has {len(wanted)} inputs ({inputs}), and inputCols names {', '.join(names)}. "
        f"{[*lacks, *extra][0]} Name each column after its input (withColumnRenamed), or each input after its column."
    )


def check_rows(what: str, total: int, *, is_split: bool) -> None:
    """Check that there are rows to train, validate or evaluate on.

    Args:
        what: What the rows are for: ``"train"``, ``"validate"`` or ``"evaluate"``.
        total: Their number on all workers.
        is_split: Whether ``validationIndicatorCol`` is set.

    Raises:
        DataError: There are no such rows.
    """
    if total:
        return
    reason = "the DataFrame is empty. Did a filter or a join drop all rows?"
    if is_split and what == "train":
        reason = "the DataFrame is empty, or validationIndicatorCol is true for all rows."
    elif is_split:
        reason = "validationIndicatorCol is true for no row. Mark some rows, or clear the Param."
    raise DataError(f"There are no rows to {what} on: {reason}")


def stacks_columns(model: Any, form: str, num_columns: int) -> bool:
    """Return whether the columns of ``inputCols`` go into the model side by side.

    Args:
        model: The Keras model.
        form: What it is called with; see ``Inputs.form``.
        num_columns: The number of columns.
    """
    is_sequential = any(base.__name__ == "Sequential" for base in type(model).__mro__)
    return (form == "tensor" and num_columns > 1) or (is_sequential and form == "unknown")
