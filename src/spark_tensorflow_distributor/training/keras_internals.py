"""What Keras and tf_keras have no public names for, of a model and its optimizer.

The private names are in the table of ``private_names``. If a release lacks one, these functions return less, or do
nothing; each one says what that means.
"""

from collections.abc import Sequence
from typing import Any


def layers_of(model: Any) -> list[Any]:
    """Return a model and its layers, with those of nested models and layers.

    Without the private name, the nested ones are missing: their custom classes are not found, ``compare_step`` does not
    restore what they hold, and one that is not built yet goes unnoticed.
    """
    flatten = getattr(model, "_flatten_layers", None)
    return [model, *getattr(model, "layers", ())] if flatten is None else list(flatten())


def build_optimizer(optimizer: Any, variables: Sequence[Any]) -> None:
    """Create an optimizer's variables.

    Without the private name, those of tf_keras' legacy optimizers do not exist until the first step, so a checkpoint
    that has values for them is refused.
    """
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    elif hasattr(optimizer, "_create_all_weights"):  # tf_keras' legacy optimizers
        optimizer._create_all_weights(variables)


def unlisted_variables(model: Any) -> list[Any]:
    """Return the variables that tf_keras lists neither in a model nor in an optimizer: loss scale and step counter.

    Without the private names, the loss scale has its initial value after resuming, and the step counter is 0.
    """
    scale = getattr(getattr(model, "optimizer", None), "_loss_scale", None)
    counter = getattr(model, "_train_counter", None)
    return [*getattr(scale, "_weights", {}).values(), *([] if counter is None else [counter])]


def initial_epoch_of(model: Any) -> Any:
    """Return the epoch that BackupAndRestore of Keras 3 has chosen for ``fit`` to begin with; None if there is none."""
    return getattr(model, "_initial_epoch", None)


def set_initial_epoch(model: Any, epoch: Any) -> None:
    """Replace the result of :func:`initial_epoch_of`.

    Without the private name, which tf_keras does not have, ``fit`` begins with its argument ``initial_epoch``.
    """
    if hasattr(model, "_initial_epoch"):
        model._initial_epoch = epoch
