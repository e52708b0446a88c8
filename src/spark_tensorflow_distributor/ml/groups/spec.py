"""What the driver tells the workers that train one model for each group. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...inference.model import ModelSpec

# What the user's function may name among its arguments, besides its own.
OFFERED = ("num_features", "num_classes")


@dataclass(frozen=True)
class GroupTask:
    """Describes how the models are trained.

    Attributes:
        num_keys: The number of columns that form the key.
        features: The names of the feature columns.
        is_single: Whether the user gave a single name, so that the model gets one tensor instead of a collection.
        label: The label column, for messages.
        has_weights: Whether a weight column follows the labels.
        has_validation: Whether a column that is true for validation rows follows them.
        batch_size: Rows per step.
        epochs: Passes over the rows.
        shuffle: Whether the order of the rows differs from epoch to epoch.
        seed: Determines initial weights, dropout and the order of the rows, the same for each group.
        is_classifier: Whether the labels are class indices.
        num_classes: The number of classes if it is known, else None.
        max_bytes: Size of a group's rows above which it is not trained.
        gpu_resource_name: Name of the GPU resource in Spark's settings.
    """

    num_keys: int
    features: tuple[str, ...]
    is_single: bool
    label: str
    has_weights: bool = False
    has_validation: bool = False
    batch_size: int = 32
    epochs: int = 1
    shuffle: bool = True
    seed: int = 0
    is_classifier: bool = False
    num_classes: int | None = None
    max_bytes: int = 1 << 30
    gpu_resource_name: str = "gpu"


@dataclass(frozen=True)
class GroupProgram:
    """The user's part of the training.

    Attributes:
        model: A function that returns a compiled Keras model, or such a model.
        params: The function's keyword arguments.
        callbacks: A function that returns Keras callbacks for one group, or None.
    """

    model: Any
    params: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] | None = None


@dataclass(frozen=True)
class Template:
    """What all models of the groups have in common: everything but their weights.

    Attributes:
        spec: The description of a Keras model.
        data: Its bytes.
        stack: Whether the feature columns go into it side by side in one tensor.
        width: The number of values that it returns for a row.
        gives_logits: Whether these are logits instead of probabilities.
    """

    spec: ModelSpec
    data: bytes
    stack: bool
    width: int
    gives_logits: bool
