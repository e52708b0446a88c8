"""Replaces strategies that a program creates with the one that all workers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def hand_out(strategy: tf.distribute.Strategy, warn: Callable[[str], None]) -> None:
    """Return the workers' strategy wherever a program creates one over all devices or workers, with a warning.

    Programs for a single machine begin with ``MirroredStrategy()``, and programs for several with
    ``MultiWorkerMirroredStrategy()``. Creating a second strategy in a process that already trains under one makes
    TensorFlow crash or hang, and the workers' strategy does what these programs need. Afterwards, this process cannot
    create any other strategy of these classes.

    Args:
        strategy: The strategy of all workers.
        warn: Shows a warning.
    """
    warned: set[str] = set()

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        # TensorFlow's name for the latter is CollectiveAllReduceStrategy.
        name = "MirroredStrategy" if issubclass(cls, tf.distribute.MirroredStrategy) else "MultiWorkerMirroredStrategy"
        if name not in warned:
            warned.add(name)
            warn(
                f"The training function creates a {name}. It gets the strategy of all workers instead, under which it "
                "runs already. Drop the line and its scope, or set use_custom_strategy=True to train under a strategy "
                "of the function's own."
            )
        return strategy

    # The deprecated tf.distribute.experimental.MultiWorkerMirroredStrategy inherits __new__.
    for each in (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy):
        each.__new__ = staticmethod(new)
    # Python initialises what __new__ returns if it is an instance of the class.
    type(strategy).__init__ = lambda self, *args, **kwargs: None
