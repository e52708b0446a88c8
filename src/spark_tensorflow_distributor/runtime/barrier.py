"""Makes Spark's BarrierTaskContext available in the trainer, as if the function ran in Spark's own Python worker.

The context of a barrier task is plain data, and each of its calls opens a new connection to the task's JVM. It
therefore works in any process of the same host that has its data.
"""

import base64
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pyspark import BarrierTaskContext

# BarrierTaskContext.allGather, bound to a task.
AllGather: TypeAlias = Callable[[str], list[str]]

# Attributes that PySpark keeps on the class rather than on the object: up to 4.0, and since.
_CLASS_STATE = ("_port", "_secret", "_conn_info")


def carry_out(context: "BarrierTaskContext") -> str:
    """Return the state of a BarrierTaskContext as base64 text."""
    on_class = {name: getattr(type(context), name) for name in _CLASS_STATE if hasattr(type(context), name)}
    return base64.b64encode(pickle.dumps((on_class, dict(vars(context))))).decode()


def carry_in(state: str) -> None:
    """Make ``BarrierTaskContext.get()`` in this process return the context that :func:`carry_out` was given."""
    from pyspark import BarrierTaskContext, TaskContext

    on_class, on_object = pickle.loads(base64.b64decode(state))
    for name, value in on_class.items():
        setattr(BarrierTaskContext, name, value)
    context = object.__new__(BarrierTaskContext)
    vars(context).update(on_object)
    # TaskContext.get() and BarrierTaskContext.get() look in different places.
    TaskContext._taskContext = context
    BarrierTaskContext._taskContext = context
