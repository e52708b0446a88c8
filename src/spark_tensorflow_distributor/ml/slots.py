"""Lets trainings of one driver wait for each other's slots.

``CrossValidator(parallelism=4)`` starts four trainings at once. Spark admits a barrier stage that fits the empty
cluster, and lets it wait until enough slots are free. But the runner's ``start_timeout`` runs meanwhile, and stages
that wait keep no order. So a training begins only when those before it leave it enough slots. They are served in the
order of their arrival, so that small ones do not delay a large one forever.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

# How often to look whether the cluster has grown.
_LOOK_SECONDS = 1.0


class SlotQueue:
    """The slots that running trainings hold, and the trainings that wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: dict[int, int] = {}
        self._waiting: list[int] = []
        self._tickets = itertools.count()

    @contextlib.contextmanager
    def hold(self, tasks: int, capacity: Callable[[], int | None]) -> Iterator[None]:
        """Wait until there is room, then hold the slots for the duration of the context.

        A training that needs more slots than there are is admitted when no other one runs: the runner knows whether
        more executors may still come.

        Args:
            tasks: The number of slots.
            capacity: Returns how many slots the cluster has now; None if unknown, and every training is then admitted.
        """
        ticket = next(self._tickets)
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not self._may_start(ticket, tasks, capacity):
                    self._changed.wait(_LOOK_SECONDS)
                self._taken[ticket] = tasks
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                del self._taken[ticket]
                self._changed.notify_all()

    def _may_start(self, ticket: int, tasks: int, capacity: Callable[[], int | None]) -> bool:
        if self._waiting[0] != ticket:
            return False
        if not self._taken:
            return True
        slots = capacity()
        return slots is None or sum(self._taken.values()) + tasks <= slots


_queues: "weakref.WeakKeyDictionary[Any, SlotQueue]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def queue_of(application: Any) -> SlotQueue:
    """Return the queue of a Spark application: of its SparkContext, or of its session with Spark Connect."""
    with _lock:
        return _queues.setdefault(application, SlotQueue())
