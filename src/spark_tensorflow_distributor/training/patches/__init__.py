"""Patches for what a replica cannot compute alone in Keras.

A replica computes its steps as if it were alone, and gradients are averaged over the replicas before an optimizer
applies them (see ``gradient_mean``). This is correct for any mean over rows. Each module here patches one kind of
exception. Internals that are not recognised are left unchanged, with a warning.
"""

import logging
from collections.abc import Callable, Collection
from types import ModuleType

import tensorflow as tf

from ..keras_api import keras_for_workers, selected_keras
from ..shard_feeding import disable_device_autotuning
from . import (
    epochs,
    execution,
    gradients,
    losses,
    metrics,
    mirrored,
    random_numbers,
    saved_files,
    tf_keras,
    tf_keras_gradients,
)

_log = logging.getLogger(__name__)

# Set on a package that has been patched.
_MARK = "_spark_tensorflow_distributor_patched"

# Patches the given Keras package.
Patch = Callable[[ModuleType], None]

# In the order in which they are applied.
PATCHES: dict[str, Patch] = {
    "parts": epochs.parts,
    "gradients": gradients.gradients,
    "sums": losses.sums,
    "metrics": metrics.metrics,
    "epoch_results": epochs.epoch_results,
    "shuffled_arrays": random_numbers.shuffled_arrays,
    "dropout": random_numbers.dropout,
    "noise": random_numbers.noise,
    "jit_compile": execution.jit_compile,
    "saved_models": saved_files.saved_models,
    "callbacks": saved_files.callbacks,
    "downloads": saved_files.downloads,
    "mirrored": mirrored.mirrored,
}

TF_KERAS_PATCHES: dict[str, Patch] = {
    "parts": tf_keras.parts,
    "gradients": tf_keras_gradients.gradients,
    "sums": tf_keras.sums,
    "metrics": metrics.metrics,
    "epoch_results": tf_keras.epoch_results,
    "step_logs": tf_keras.step_logs,
    "shuffled_arrays": tf_keras.shuffled_arrays,
    "dropout": tf_keras.dropout,
    "noise": tf_keras.noise,
    "saved_models": tf_keras.saved_models,
    "callbacks": tf_keras.callbacks,
    "downloads": saved_files.downloads,
    "timed_steps": execution.timed_steps,
}


def patch_tensorflow(seed: int = 0) -> None:
    """Apply the patches that are independent of Keras. Call it before the strategy is created.

    Args:
        seed: The run's seed, the same on all workers.
    """
    try:
        random_numbers.shuffle_alike(seed)
    except (ImportError, AttributeError) as error:
        _log.warning(
            f"TensorFlow {tf.__version__} has unrecognised internals ({error!r}). Without a seed from the "
            "program, workers may shuffle differently."
        )
    losses.average_loss()
    mirrored.feed_mirrored()
    disable_device_autotuning()


def apply_patches(without: Collection[str] = ()) -> list[str]:
    """Patch the package behind ``tf.keras`` in this process so that it trains correctly on several workers.

    Call this before the first model is built. It takes milliseconds, and initialises neither TensorFlow's eager context
    nor a device. It does nothing if Keras is missing or uses a backend other than TensorFlow, or if it is called again.

    Args:
        without: Names of patches to leave out, for tests that show why they are needed.

    Returns:
        The names of the patches that were applied, for the log.

    Raises:
        ConfigurationError: If Keras 3 is too old.
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
            if name not in without:
                patch(keras)
                applied.append(name)
        except Exception as error:  # of any type: patches use internals, which may change
            _log.warning(
                f"{package} {keras.__version__} has an unrecognised {name} ({error!r}), which was left unchanged. "
                f"If training fails with several workers, {advice}."
            )
    return applied
