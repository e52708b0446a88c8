"""What TensorFlow and Keras lack for several workers, and what is done about it.

Keras 3 cannot ``fit`` under ``tf.distribute.MultiWorkerMirroredStrategy``, and much of it gives other numbers than in
one process. Each file here mends one kind of fault; each mend says what the fault is. Where one process can see whether
a release has the fault, the mend looks; where only a group of workers could, it is for all releases, and a test fails
when it is not needed any more. A Keras of a kind not known here stays as it is, with a warning.
"""

import logging
from collections.abc import Callable, Collection
from typing import Any

from ..keras_api import import_package, legacy_selected
from . import (
    execution,
    global_batches,
    gradients,
    layer_state,
    logs,
    losses,
    metrics,
    model_building,
    random_numbers,
    saved_files,
    tf_keras,
)

_log = logging.getLogger(__name__)

# On a package that has been here.
_MARK = "_spark_tensorflow_distributor_patched"

Patch = Callable[[Any, Any], bool]

# In the order in which they are applied. The names are those of the faults.
PATCHES: dict[str, Patch] = {
    "symbolic_build": model_building.symbolic_build,
    "reduce_per_replica": logs.reduce_per_replica,
    "unread_logs": logs.unread_logs,
    "metric_variables": metrics.metric_variables,
    "loss_scaling": losses.loss_scaling,
    "shares": losses.shares,
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


# Of tf_keras.
TF_KERAS_PATCHES: dict[str, Patch] = {
    "shares": tf_keras.shares,
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
    """What has nothing to do with Keras; to be called before the strategy is made.

    Args:
        seed: the same on all workers.
    """
    import tensorflow as tf

    try:
        random_numbers.shuffle_alike(tf, seed)
        if not legacy_selected():  # tf_keras puts the workers' metrics together in merge calls
            execution.without_merge_calls(tf)
    except (ImportError, AttributeError) as error:
        _log.warning(
            f"TensorFlow {tf.__version__} has insides of an unknown kind ({error!r}): where the program gives no seed, "
            "workers may shuffle differently, and gradient accumulation and loss scaling may fail with several workers."
        )


def apply_patches(without: Collection[str] = ()) -> list[str]:
    """Mends what keeps Keras from training right under several workers, in this process, where it needs mending.

    To be called before the first model is built; it takes milliseconds and starts neither TensorFlow's eager context
    nor a device. It is for the Keras of ``tf.keras``: Keras 3, or tf_keras if ``TF_USE_LEGACY_KERAS`` selects it. It
    does nothing for another backend than TensorFlow, without Keras, and the second time.

    Args:
        without: names of mends to leave out, to see what they are good for.

    Returns:
        The names of what was patched, for the log.
    """
    package = "tf_keras" if legacy_selected() else "keras"
    keras = import_package(package)
    if keras is None or (package == "keras" and not _is_keras_3_of_tensorflow(keras)):
        return []
    if getattr(keras, _MARK, False):
        return []
    setattr(keras, _MARK, True)
    import tensorflow as tf

    advice = "use another release" + (", or tf_keras with TF_USE_LEGACY_KERAS=1" if package == "keras" else "")
    patched = []
    for name, mend in (PATCHES if package == "keras" else TF_KERAS_PATCHES).items():
        try:
            if name not in without and mend(tf, keras):
                patched.append(name)
        except Exception as error:  # Any at all: a probe walks through code that nobody promised to keep.
            _log.warning(
                f"{package} {keras.__version__} has a {name} of an unknown kind ({error!r}); it was left as it is. If "
                f"training fails with several workers, {advice}."
            )
    return patched


def _is_keras_3_of_tensorflow(keras: Any) -> bool:
    return not keras.__version__.startswith("2.") and keras.backend.backend() == "tensorflow"
