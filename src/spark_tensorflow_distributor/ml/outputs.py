"""What the output of a Keras model means: how many values, and whether they are probabilities or logits. Pure."""

from typing import Any

from ..errors import ConfigurationError, DataError

# Keras' losses that compare each value of the output with a label of its own, or need a one-hot label. The others
# (sparse_categorical_crossentropy, and those that users write) may take the index of a class.
_VALUE_BY_VALUE = {
    *("binarycrossentropy", "bce", "binaryfocalcrossentropy", "categoricalcrossentropy", "cosinesimilarity", "dice"),
    *("categoricalfocalcrossentropy", "categoricalhinge", "hinge", "huber", "huberloss", "kldivergence", "kld"),
    *("kullbackleiblerdivergence", "logcosh", "meanabsoluteerror", "mae", "meanabsolutepercentageerror", "mape"),
    *("meansquarederror", "mse", "meansquaredlogarithmicerror", "msle", "poisson", "squaredhinge", "tversky"),
}


def declared_width(model: Any) -> int | None:
    """Return how many values a model returns for each row; None if it does not declare it.

    Raises:
        DataError: The model has several outputs, or one with more than one dimension.
    """
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return None
    dims = [tuple(each.shape)[1:] for each in outputs]
    if len(dims) > 1 or len(dims[0]) > 1:
        raise DataError(
            f"The model's outputs have the shapes {', '.join(str(['batch', *each]) for each in dims)}; a classifier or "
            "regressor needs one output of one or more numbers per row. Train other models with MirroredStrategyRunner."
        )
    return dims[0][0] if dims[0] else 1


def gives_logits(model: Any) -> bool:
    """Return whether a classifier's output consists of logits, judging by its loss or else by its last layer."""
    loss = _loss_of(model)
    if hasattr(loss, "from_logits"):
        return bool(loss.from_logits)
    if _name_of(loss).endswith("crossentropy"):
        return False
    return _is_linear(_last_layer(model))


def check_loss(model: Any) -> None:
    """Check that a classifier's loss fits class indices and the model's output.

    Raises:
        ConfigurationError: The loss does not fit.
    """
    loss = _loss_of(model)
    name, width = _name_of(loss), declared_width(model)
    compares_values = name in _VALUE_BY_VALUE and _is_of_keras(loss)
    if compares_values and name.startswith("categorical"):
        raise ConfigurationError(
            f"The model's loss is {_shown(loss)}, which needs one-hot labels, but the labels of pyspark.ml are class "
            "indices. Compile it with sparse_categorical_crossentropy."
        )
    if compares_values and width is not None and width > 1:
        raise ConfigurationError(
            f"The model's loss is {_shown(loss)}, which compares the output's {width} values per row with as many "
            "labels, but a classifier's label is one number, the index of the class. Compile it with "
            "sparse_categorical_crossentropy, or give its last layer one unit (two classes). To predict numbers, use "
            "KerasRegressor."
        )
    if name == "sparsecategoricalcrossentropy" and width == 1:
        raise ConfigurationError(
            "The model's loss is sparse_categorical_crossentropy, but its output has one value per row. Give its last "
            "layer a unit for each class, or compile it with binary_crossentropy (two classes)."
        )
    check_activation(model)


def check_activation(model: Any) -> None:
    """Check that a classifier whose loss takes probabilities returns probabilities.

    Raises:
        ConfigurationError: The model returns logits.
    """
    loss, last = _loss_of(model), _last_layer(model)
    if _name_of(loss).endswith("crossentropy") and not getattr(loss, "from_logits", False) and _is_linear(last):
        activation = "sigmoid" if declared_width(model) == 1 else "softmax"
        raise ConfigurationError(
            f"The model's loss takes probabilities, but its last layer, {last.name!r}, has no activation, so it "
            f"returns any numbers. Give it activation={activation!r}, or compile the loss with from_logits=True."
        )


def _loss_of(model: Any) -> Any:
    """Return the loss of a model with one output, which may be given in a list or a dict."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, dict):
        loss = list(loss.values())
    return loss[0] if isinstance(loss, list | tuple) and len(loss) == 1 else loss


def _is_of_keras(loss: Any) -> bool:
    """Return whether a loss is Keras' own, whose subclasses and namesakes may compute something else."""
    if isinstance(loss, str):
        return True
    module = getattr(loss, "__module__", None) if hasattr(loss, "__name__") else type(loss).__module__
    return str(module).partition(".")[0] in ("keras", "tf_keras")


def _shown(loss: Any) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))


def _name_of(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", "")
    return str(name).lower().replace("_", "")


def _last_layer(model: Any) -> Any:
    """Return the layer that computes the output; None if that is an operation of no layer, or is not known."""
    layers = getattr(model, "layers", None)
    if not layers:
        return None
    operations = getattr(model, "operations", None) or layers
    return layers[-1] if operations[-1] is layers[-1] else None


def _is_linear(layer: Any) -> bool:
    return getattr(getattr(layer, "activation", None), "__name__", "") == "linear"
