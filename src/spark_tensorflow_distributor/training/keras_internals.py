"""What Keras and tf_keras have no public names for, of a model and its optimizer.

The private names are in the table of ``private_names``. If a release lacks one, these functions return less, or do
nothing; each one says what that means.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from .keras_api import keras_of


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


def when_built(owner: Any, callback: Callable[[], object]) -> Callable[[], None]:
    """Call a function as soon as an optimizer or a compiled loss or metric creates its variables, in the first step.

    Without the private name, the function is not called for tf_keras' legacy optimizers.

    Returns:
        A function that cancels this.
    """
    name = next((each for each in ("build", "_create_all_weights") if hasattr(owner, each)), None)
    if name is None:
        return lambda: None
    method = getattr(owner, name)

    def build(*args: Any, **kwargs: Any) -> Any:
        cancel()
        result = method(*args, **kwargs)
        callback()
        return result

    def cancel() -> None:
        if vars(owner).get(name) is build:
            delattr(owner, name)

    setattr(owner, name, build)  # this attribute of the object hides the class's method until it is called once
    return cancel


def compiled_losses_and_metrics(model: Any) -> list[Any]:
    """Return the objects in which ``compile`` puts losses and metrics.

    Without the private names, the logs of the first step after resuming in mid-epoch cover only that step.
    """
    if keras_of(model) == "tf_keras":
        names = ("compiled_loss", "compiled_metrics")
    else:
        names = ("_compile_loss", "_compile_metrics")
    return [each for name in names if (each := getattr(model, name, None)) is not None]


def built_for(optimizer: Any, variables: Sequence[Any]) -> list[int] | None:
    """Return the indices of those variables for which an optimizer was built, in the optimizer's order.

    Returns None if it was not built, or also for other variables. This is also what is returned without the private
    names; an optimizer that trains only some of its model's variables cannot be restored then.
    """
    keys: list[Any] = []
    if hasattr(optimizer, "get_slot_names"):  # tf_keras' legacy optimizers
        return _with_slots(optimizer, variables)
    if hasattr(optimizer, "_trainable_variables"):  # Keras 3
        keys, known = [id(each) for each in optimizer._trainable_variables], [id(each) for each in variables]
    elif hasattr(inner := getattr(optimizer, "inner_optimizer", optimizer), "_index_dict"):  # tf_keras
        by_index = sorted(inner._index_dict.items(), key=lambda item: item[1])
        keys, known = [key for key, _ in by_index], [_key(inner, each) for each in variables]
    indices = {key: index for index, key in enumerate(known)} if keys else {}
    found = [indices[key] for key in keys if key in indices]
    return found if found and len(found) == len(keys) else None


def _key(optimizer: Any, variable: Any) -> Any:
    # tf_keras lists lookup tables among a model's variables.
    return optimizer._var_key(variable) if hasattr(variable, "assign") else None


def _with_slots(optimizer: Any, variables: Sequence[Any]) -> list[int] | None:
    order = {id(each): position for position, each in enumerate(optimizer.variables())}
    found = {}
    for name in optimizer.get_slot_names()[:1]:
        for index, variable in enumerate(variables):
            with contextlib.suppress(KeyError):
                found[order[id(optimizer.get_slot(variable, name))]] = index
    return [index for _, index in sorted(found.items())] or None


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
