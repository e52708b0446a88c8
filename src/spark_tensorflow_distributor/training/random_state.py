"""The state of this process's random generators, and how to set it again."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .keras_api import is_keras_3


def global_seed(model: Any) -> list[Any]:
    """Keras 3's own seed generator, for layers and functions without one; only where it has been used."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    generator = state and state.get_global_attribute("global_seed_generator")
    return [generator.state] if generator is not None and is_keras_3(model) else []


def random_state() -> dict[str, Any]:
    """Python's, NumPy's and TensorFlow's generators of this process."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    found: dict[str, Any] = {
        "python": [version, np.array(numbers, np.uint64), gauss],
        "numpy": [kind, keys, position, has_gauss, cached],
    }
    generator = _tf_generator()
    if generator is not None:
        found["tensorflow"] = np.asarray(generator.state.numpy())
    return found


def restore_random_state(state: Mapping[str, Any]) -> None:
    """What :func:`random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(int(each) for each in numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys, position, has_gauss, cached))
    generator = _tf_generator()
    if generator is not None and "tensorflow" in state:
        generator.state.assign(state["tensorflow"])


def _tf_generator() -> Any:
    """TensorFlow's global generator, if it has been used; asking for it would make it."""
    from tensorflow.python.ops import stateful_random_ops

    return getattr(stateful_random_ops, "global_generator", None)
