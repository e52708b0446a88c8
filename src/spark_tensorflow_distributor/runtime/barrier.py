"""Spark's BarrierTaskContext in the trainer: a training function may ask it as if it ran in Spark's own worker.

The context of a barrier task is plain data, and its calls open a new connection to the task's JVM each time, so it
works in another process of the same host once it has been carried over.
"""

import base64
import pickle
from typing import Any

# What PySpark keeps on the class rather than on the object, by version: 3.5 to 4.0, and later.
_CLASS_STATE = ("_port", "_secret", "_conn_info")


def carry_out(context: Any) -> str:
    """The state of a BarrierTaskContext, as base64 text."""
    on_class = {name: getattr(type(context), name) for name in _CLASS_STATE if hasattr(type(context), name)}
    return base64.b64encode(pickle.dumps((on_class, dict(vars(context))))).decode()


def carry_in(state: str) -> None:
    """Make ``BarrierTaskContext.get()`` of this process answer with what :func:`carry_out` took."""
    from pyspark import BarrierTaskContext, TaskContext

    on_class, on_object = pickle.loads(base64.b64decode(state))
    for name, value in on_class.items():
        setattr(BarrierTaskContext, name, value)
    context = object.__new__(BarrierTaskContext)
    vars(context).update(on_object)
    # TaskContext.get() and BarrierTaskContext.get() look in different places.
    TaskContext._taskContext = context
    BarrierTaskContext._taskContext = context
