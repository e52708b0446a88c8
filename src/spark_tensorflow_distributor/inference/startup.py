"""Starts TensorFlow in Spark's Python worker."""

import os
import sys

from ..errors import ClusterError
from ..runtime.devices import DEFAULT_ENV, visible_devices
from ..runtime.process_tools import environment, missing_tensorflow, paused_garbage_collection
from ..training.autograph_files import keep_no_generated_files


def start_tensorflow(gpu_resource_name: str) -> None:
    """Import TensorFlow and, on its first import in this process, assign the task's CPUs and GPUs to it.

    Raises:
        ClusterError: If TensorFlow cannot be imported.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    cpus = int(context.cpus()) if context is not None else 1
    resources = {name: info.addresses for name, info in context.resources().items()} if context is not None else {}
    addresses = resources.get(gpu_resource_name, [])
    gpus = visible_devices(addresses, len(addresses), os.environ.get("CUDA_VISIBLE_DEVICES"))
    is_first = "tensorflow" not in sys.modules
    # TensorFlow reads these variables only while it starts. They are restored afterwards, because Spark owns the
    # process.
    defaults = {key: value for key, value in DEFAULT_ENV.items() if key not in os.environ}
    with environment({**defaults, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}):
        try:
            with paused_garbage_collection():
                import tensorflow  # noqa: F401
        except ImportError as error:
            raise ClusterError(missing_here(error)) from error
        if is_first:
            _configure(cpus)
        if context is not None:  # Spark's Python workers end without running their exit handlers
            keep_no_generated_files()


def missing_here(error: ImportError) -> str:
    """Return the message for a failed import of TensorFlow in this process."""
    return missing_tensorflow(f"the executors' Python ({sys.executable})", error)


def _configure(cpus: int) -> None:
    import tensorflow as tf

    # Like TensorFlow, take an empty variable for one that is not set.
    if not os.environ.get("TF_NUM_INTRAOP_THREADS"):
        tf.config.threading.set_intra_op_parallelism_threads(cpus)
    if not os.environ.get("TF_NUM_INTEROP_THREADS"):
        tf.config.threading.set_inter_op_parallelism_threads(min(2, cpus))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.list_logical_devices()
