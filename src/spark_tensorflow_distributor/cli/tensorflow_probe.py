"""Imports TensorFlow and prints what it is, as JSON. The text of this file runs in a process of its own."""

import importlib.metadata
import json
import time
from typing import Any


def tensorflow_facts() -> dict[str, Any]:
    """Import TensorFlow; return its version, Keras', the seconds that this took, the visible GPUs, and its CUDA."""
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
