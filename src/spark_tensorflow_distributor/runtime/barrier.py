"""Makes Spark's BarrierTaskContext available in the trainer, as if the function ran in Spark's own Python worker.

The context of a barrier task is plain data, and each of its calls opens a new connection to the task's JVM. It
therefore works in any process of the same host that has its data.
"""

import base64
import concurrent.futures
import functools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from pyspark import BarrierTaskContext

# BarrierTaskContext.allGather, bound to a task.
AllGather: TypeAlias = Callable[[str], list[str]]

Result = TypeVar("Result")

_HEARTBEAT_SECONDS = 1.0
# Attributes that PySpark keeps on the class rather than on the object. Which ones exist depends on its version.
_CLASS_STATE = ("_port", "_secret", "_conn_info")


def keep_alive(wait: Callable[[], Result], heartbeat: Callable[[], None]) -> Result:
    """Call ``wait``, which waits for other tasks, and return its result; call ``heartbeat`` every second meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="spark-tensorflow-barrier") as threads:
        future = threads.submit(wait)
        while not concurrent.futures.wait([future], _HEARTBEAT_SECONDS).done:
            heartbeat()
        return future.result()


def carry_out(context: "BarrierTaskContext") -> str:
    """Return the state of a BarrierTaskContext as base64 text."""
    on_class = {name: getattr(type(context), name) for name in _CLASS_STATE if hasattr(type(context), name)}
    return base64.b64encode(pickle.dumps((on_class, dict(vars(context))))).decode()


def carry_in(state: str, waiting: Callable[[str], AbstractContextManager[None]]) -> None:
    """Make ``BarrierTaskContext.get()`` in this process return the context passed to :func:`carry_out`.

    Args:
        state: What :func:`carry_out` returned.
        waiting: Takes a method's name; returns a context manager that is entered while this method waits for all tasks.
    """
    from pyspark import BarrierTaskContext, TaskContext

    # Comes from the agent, over a local socket of the same user.
    on_class, on_object = pickle.loads(base64.b64decode(state))  # noqa: S301
    for name, value in on_class.items():
        setattr(BarrierTaskContext, name, value)
    context = object.__new__(BarrierTaskContext)
    vars(context).update(on_object)
    for name in ("barrier", "allGather"):
        setattr(context, name, _announced(getattr(context, name), functools.partial(waiting, name)))
    # TaskContext.get() and BarrierTaskContext.get() look in different places.
    TaskContext._taskContext = context
    BarrierTaskContext._taskContext = context


def _announced(method: Callable[..., Any], waiting: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    @functools.wraps(method)
    def announced(*args: Any, **kwargs: Any) -> Any:
        with waiting():
            return method(*args, **kwargs)

    return announced
