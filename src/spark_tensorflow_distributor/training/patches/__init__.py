"""Patches for what TensorFlow and Keras get wrong on several workers.

Keras 3 cannot ``fit`` under ``tf.distribute.MultiWorkerMirroredStrategy``, and many of its features give other numbers
than in one process. Each module here patches one kind of fault, and each patch says what the fault is. If one process
can see whether a release has the fault, the patch checks; if only a group of workers can, the patch applies to all
releases, and a test fails once it is no longer needed. A release of an unknown kind is left unchanged, with a warning.
"""

import logging
from collections.abc import Callable, Collection
from types import ModuleType

import tensorflow as tf

from ..keras_api import keras_for_workers, selected_keras
from . import (
    execution,
    global_batches,
    gradients,
    layer_state,
    logs,
    losses,
    model_building,
    random_numbers,
    saved_files,
    tf_keras,
)

_log = logging.getLogger(__name__)

# Set on a package that has been patched.
_MARK = "_spark_tensorflow_distributor_patched"

# Patches the given Keras package, and returns whether it was necessary.
Patch = Callable[[ModuleType], bool]

# In the order in which they are applied, named after the faults.
PATCHES: dict[str, Patch] = {
    "symbolic_build": model_building.symbolic_build,
    "reduce_per_replica": logs.reduce_per_replica,
    "unread_logs": logs.unread_logs,
    "batch_fraction": losses.weight_losses,
    "gradients": gradients.gradients,
    "global_batches": global_batches.global_batches,
    "shuffled_arrays": random_numbers.shuffled_arrays,
    "dropout": random_numbers.dropout,
    "noise": random_numbers.noise,
    "steps_per_execution": execution.steps_per_execution,
    "jit_compile": execution.jit_compile,
    "moving_statistics": layer_state.moving_statistics,
    "saved_models": saved_files.saved_models,
    "callbacks": saved_files.callbacks,
}


TF_KERAS_PATCHES: dict[str, Patch] = {
    "batch_fraction": tf_keras.weight_losses,
    "global_batches": tf_keras.global_batches,
    "step_logs": tf_keras.step_logs,
    "shuffled_arrays": tf_keras.shuffled_arrays,
    "dropout": tf_keras.dropout,
    "noise": tf_keras.noise,
    "moving_statistics": tf_keras.moving_statistics,
    "saved_models": tf_keras.saved_models,
    "callbacks": tf_keras.callbacks,
}


def patch_tensorflow(seed: int = 0) -> None:
    """Apply the patches that are independent of Keras. Call it before the strategy is created.

    Args:
        seed: The same on all workers.
    """
    try:
        random_numbers.shuffle_alike(seed)
        if selected_keras() == "keras":  # tf_keras needs merge calls to combine the workers' metrics
            execution.without_merge_calls()
    except (ImportError, AttributeError) as error:
        _log.warning(
            f"TensorFlow {tf.__version__} has internals of an unknown kind ({error!r}). Without a seed from the "
            "program, workers may shuffle differently; gradient accumulation and loss scaling may fail with several "
            "workers."
        )


def apply_patches(without: Collection[str] = ()) -> list[str]:
    """Patch the Keras of ``tf.keras`` in this process so that it trains correctly under several workers.

    Call it before the first model is built. It takes milliseconds and initialises neither TensorFlow's eager context
    nor a device. It does nothing without Keras, for a backend other than TensorFlow, and when called again.

    Args:
        without: Names of patches to leave out, to see what they are needed for.

    Returns:
        The names of the patches that were applied, for the log.

    Raises:
        ConfigurationError: Keras 3 is too old.
    """
    keras = keras_for_workers()
    if keras is None or getattr(keras, _MARK, False):
        return []
    setattr(keras, _MARK, True)
    package = selected_keras()
    advice = "use another release" + (", or tf_keras with TF_USE_LEGACY_KERAS=1" if package == "keras" else "")
    applied = []
    for name, patch in (PATCHES if package == "keras" else TF_KERAS_PATCHES).items():
        try:
            if name not in without and patch(keras):
                applied.append(name)
        except Exception as error:  # of any type: a patch goes through internals that nobody promised to keep
            _log.warning(
                f"{package} {keras.__version__} has a {name} of an unknown kind ({error!r}), which was left unchanged. "
                f"If training fails with several workers, {advice}."
            )
    return applied
