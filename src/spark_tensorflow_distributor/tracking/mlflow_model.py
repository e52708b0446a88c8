"""Saves a Keras model in MLflow's format."""

import importlib
import os
from typing import Any

from ..errors import ConfigurationError
from ..formatting import type_name, with_article
from ..training.keras_api import keras_of


def save(model: Any, folder: str) -> str:
    """Save a model with its signature below a folder; return the path.

    Args:
        model: The training function's return value: the model, or a tuple whose first element it is.
        folder: An empty folder.

    Raises:
        ConfigurationError: The value contains no Keras model.
    """
    if isinstance(model, tuple) and model:
        model = model[0]
    if not keras_of(model) or not hasattr(model, "predict"):
        raise ConfigurationError(
            "log_model=True needs a training function that returns a Keras model; it returned "
            f"{with_article(type_name(model))}."
        )
    path = os.path.join(folder, "model")
    importlib.import_module("mlflow.tensorflow").save_model(model, path, signature=signature_of(model))
    return path


def signature_of(model: Any) -> Any:
    """Return MLflow's signature for a model's inputs and outputs; None if the model does not define them."""
    models, schemas = importlib.import_module("mlflow.models"), importlib.import_module("mlflow.types.schema")
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        return None

    def schema(tensors: Any) -> Any:
        named = len(tensors) > 1
        return schemas.Schema([schemas.TensorSpec(*_spec(each), each.name if named else None) for each in tensors])

    return models.ModelSignature(schema(inputs), schema(outputs))


def _spec(tensor: Any) -> tuple[Any, tuple[int, ...]]:
    import numpy as np

    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return np.dtype(dtype), tuple(-1 if size is None else int(size) for size in tensor.shape)
