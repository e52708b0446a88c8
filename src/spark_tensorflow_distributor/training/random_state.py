"""The state of this process's random generators, to be saved and restored."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from .keras_api import keras_of
from .private_names import KERAS_STATE, STATEFUL_RANDOM

_GENERATOR = "global_seed_generator"


def global_seed(model: object) -> list[Any]:
    """Return the variable of Keras 3's global seed generator, which unseeded layers use; empty if it is unused."""
    state = KERAS_STATE.loaded()
    generator = state and state.get_global_attribute(_GENERATOR)
    return [generator.state] if generator is not None and keras_of(model) == "keras" else []


def ensure_global_seed() -> Any:
    """Return Keras 3's global seed generator, creating it first if it is unused."""
    import keras

    state = KERAS_STATE.load()
    if state.get_global_attribute(_GENERATOR) is None:
        state.set_global_attribute(_GENERATOR, keras.random.SeedGenerator())
    return state.get_global_attribute(_GENERATOR)


def use_seed(generator: Any) -> None:
    """Make a seed generator Keras 3's global one; None makes Keras create a new one when it needs one."""
    KERAS_STATE.load().set_global_attribute(_GENERATOR, generator)


def random_state() -> dict[str, Any]:
    """Return the state of the generators of Python, NumPy and TensorFlow."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, np.array(numbers, np.uint64), gauss],
        "numpy": [kind, keys, position, has_gauss, cached],
    }
    generator = _tf_generator()
    if generator is not None:
        state["tensorflow"] = np.asarray(generator.state.numpy())
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    random.setstate(_python_state(state))
    np.random.set_state(_numpy_state(state))
    generator = _tf_generator()
    if generator is not None and "tensorflow" in state:
        generator.state.assign(state["tensorflow"])


def check_random_state(state: Mapping[str, Any]) -> None:
    """Check, on separate generators, that a state can be restored.

    Raises:
        Exception: If the state is not one that :func:`random_state` returned.
    """
    random.Random().setstate(_python_state(state))
    np.random.RandomState().set_state(_numpy_state(state))


def _python_state(state: Mapping[str, Any]) -> tuple[Any, ...]:
    version, numbers, gauss = state["python"]
    return version, tuple(int(each) for each in numbers), gauss


def _numpy_state(state: Mapping[str, Any]) -> tuple[Any, ...]:
    kind, keys, position, has_gauss, cached = state["numpy"]
    return kind, keys, position, has_gauss, cached


def _tf_generator() -> Any:
    """Return TensorFlow's global ``Generator`` if it has been used; the public function would create it."""
    return getattr(STATEFUL_RANDOM.load(), "global_generator", None)
