"""Imports TensorFlow and prints facts about it as JSON. The source of this file is run in a separate process."""

import importlib.metadata
import json
import time
from typing import Any


def tensorflow_facts() -> dict[str, Any]:
    """Import TensorFlow; return the versions of it, Keras and CUDA, the seconds it took, and the visible GPUs."""
    began = time.monotonic()
    import tensorflow as tf

    seconds = time.monotonic() - began
    return {
        "version": tf.__version__,
        "keras": importlib.metadata.version("keras"),
        "seconds": round(seconds, 1),
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
        "cuda": str(tf.sysconfig.get_build_info().get("cuda_version") or ""),
    }


if __name__ == "__main__":
    print(json.dumps(tensorflow_facts()))
