"""Trainings of one driver wait for each other's slots."""

import threading

from helpers import wait_until
from spark_tensorflow_distributor.ml.slots import SlotQueue, queue_of


class Training(threading.Thread):
    """Holds slots until it is told to end."""

    def __init__(self, queue, tasks, capacity):
        super().__init__(daemon=True)
        self._queue, self._tasks, self._capacity = queue, tasks, capacity
        self.runs, self.end = threading.Event(), threading.Event()
        self.start()

    def run(self):
        with self._queue.hold(self._tasks, self._capacity):
            self.runs.set()
            self.end.wait(30)

    def stop(self):
        self.end.set()
        self.join(30)


def test_trainings_start_in_order_while_there_is_room():
    queue = SlotQueue()
    first, second = Training(queue, 2, lambda: 4), Training(queue, 2, lambda: 4)
    assert first.runs.wait(10)
    assert second.runs.wait(10)
    large = Training(queue, 4, lambda: 4)
    assert wait_until(lambda: queue._waiting)
    small = Training(queue, 1, lambda: 4)
    first.stop()
    assert not large.runs.wait(0.2)
    assert not small.runs.is_set()  # it would fit, but a large one waits before it
    second.stop()
    assert large.runs.wait(10)
    assert not small.runs.wait(0.2)
    large.stop()
    assert small.runs.wait(10)
    small.stop()


def test_more_than_the_cluster_has_is_left_to_the_runner():
    queue = SlotQueue()
    first = Training(queue, 8, lambda: 4)
    assert first.runs.wait(10)
    second = Training(queue, 8, lambda: 4)
    assert not second.runs.wait(0.2)
    first.stop()
    assert second.runs.wait(10)
    second.stop()


def test_an_unknown_capacity_and_a_growing_cluster():
    queue = SlotQueue()
    slots = [2]
    trainings = [Training(queue, 2, lambda: slots[0]), Training(queue, 2, lambda: slots[0])]
    assert wait_until(lambda: queue._waiting)
    slots[0] = None
    assert all(each.runs.wait(10) for each in trainings)
    for each in trainings:
        each.stop()


def test_a_failure_gives_the_slots_back():
    queue = SlotQueue()
    for _ in range(2):
        try:
            with queue.hold(4, lambda: 4):
                raise KeyError("own")
        except KeyError:
            pass  # the next one gets the slots
    assert not queue._taken


def test_each_application_has_its_queue():
    class Context:
        pass

    first, second = Context(), Context()
    assert queue_of(first) is queue_of(first)
    assert queue_of(first) is not queue_of(second)
