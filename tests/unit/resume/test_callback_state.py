"""The state of callbacks, with a stub for those of Keras."""

import collections
from types import SimpleNamespace

import numpy as np

from spark_tensorflow_distributor.resume.callback_state import (
    callback_states,
    callbacks_at_start,
    history_of,
    restore_callbacks,
    restore_history,
)


class EarlyStopping:
    """Determines the direction of improvement, and flips min_delta, when it first sees the metric."""

    def __init__(self):
        self.monitor_op, self.best, self.wait, self.min_delta = None, None, 0, 1.0

    def on_epoch_end(self, value):
        if self.monitor_op is None:
            self.monitor_op = min
            self.min_delta *= -1
        self.wait += 1
        if self.best is None or value < self.best:
            self.best, self.wait = value, 0


def test_a_restored_callback_keeps_its_best_value():
    first, at_start = EarlyStopping(), callbacks_at_start([EarlyStopping()])
    for value in (5.0, 3.0, 4.0):
        first.on_epoch_end(value)
    second = EarlyStopping()
    restore_callbacks([second], callback_states([first], at_start))
    assert (second.best, second.wait) == (3.0, 1)
    second.on_epoch_end(4.0)
    assert (second.best, second.wait, second.min_delta) == (3.0, 2, -1.0)
    second.on_epoch_end(2.0)
    assert (second.best, second.wait, second.min_delta) == (2.0, 0, -1.0)


def test_constructor_arguments_are_not_restored():
    first = SimpleNamespace(path="a", best=1, rows=np.array([1, np.nan]))
    at_start = callbacks_at_start([first])
    first.best = 2
    second = SimpleNamespace(path="b", best=1, rows=None)
    restore_callbacks([second], callback_states([first], at_start))
    assert second == SimpleNamespace(path="b", best=2, rows=None)


def recorder():
    return SimpleNamespace(
        losses=[],
        sums=[np.zeros(2), np.zeros(3)],
        total=np.zeros(2),
        by_epoch=collections.defaultdict(list),
        nested={"a": [{"b": [0]}]},
        unchanged=[np.ones(2)],
    )


def record(callback, value):
    callback.losses.append(value)
    callback.sums[0] += value
    callback.total += value
    callback.by_epoch[0].append(value)
    callback.nested["a"][0]["b"][0] += 1
    if not hasattr(callback, "late"):
        callback.late = []
    callback.late.append(value)


def test_what_changes_in_place_is_saved_as_it_is_at_that_moment():
    first = recorder()
    at_start = callbacks_at_start([first])
    record(first, 1.0)
    record(first, 2.0)
    states = callback_states([first], at_start)
    record(first, 3.0)  # while the checkpoint is still being written
    assert "unchanged" not in states[0]["state"]
    second = recorder()
    losses, total = second.losses, second.total  # the program's own names for them
    restore_callbacks([second], states)
    record(second, 3.0)
    np.testing.assert_equal(vars(second), vars(first))
    assert losses == [1.0, 2.0, 3.0]
    assert total.tolist() == [6.0, 6.0]


def test_an_attribute_with_a_new_value_leaves_the_old_one_as_it_is():
    """Two attributes may begin as the same list."""

    def build():
        initial = [1]
        return SimpleNamespace(initial=initial, best=initial)

    first = build()
    at_start = callbacks_at_start([first])
    first.best = [2]
    second = build()
    restore_callbacks([second], callback_states([first], at_start))
    assert second == SimpleNamespace(initial=[1], best=[2])


def test_values_that_a_checkpoint_cannot_hold_are_left_out():
    endless = []
    endless.append(endless)
    structures, objects = np.zeros(1, [("a", int)]), np.array([object()])
    callback = SimpleNamespace(a=endless, b=structures, c=[objects], d={1.5: 1}, e=object(), f=b"bytes")
    assert callback_states([callback])[0]["state"] == {"f": b"bytes"}


def test_the_state_in_an_older_checkpoint_is_restored():
    callback = SimpleNamespace(losses=[])
    restore_callbacks([callback], [{"class": "SimpleNamespace", "state": {"losses": [1.0]}}])
    assert callback.losses == [1.0]


def test_callbacks_that_only_rank_0_has_are_matched_by_class():
    class Logger(SimpleNamespace):
        pass

    states = callback_states([SimpleNamespace(best=1), Logger(rows=3), SimpleNamespace(best=2)])
    others = [SimpleNamespace(best=0), SimpleNamespace(best=0)]
    restore_callbacks(others, states)
    assert [each.best for each in others] == [1, 2]


def model(epochs, **history):
    return SimpleNamespace(history=SimpleNamespace(epoch=epochs, history=history))


def test_the_history_includes_the_epoch_that_has_just_ended():
    assert history_of(model([0], loss=[2.0]), (1, {"loss": 1.0})) == ({"loss": [2.0, 1.0]}, [0, 1])
    assert history_of(model([0, 1], loss=[2.0, 1.0]), (1, {"loss": 1.0})) == ({"loss": [2.0, 1.0]}, [0, 1])


def test_a_restored_history_precedes_what_was_recorded_since():
    resumed = model([])
    for _ in range(2):
        restore_history(resumed, {"loss": [2.0, 1.0]}, [0, 1])
    assert (resumed.history.epoch, resumed.history.history) == ([0, 1], {"loss": [2.0, 1.0]})
    resumed.history.epoch.append(2)
    resumed.history.history["loss"].append(0.5)
    restore_history(resumed, {"loss": [2.0, 1.0]}, [0, 1])
    assert (resumed.history.epoch, resumed.history.history) == ([0, 1, 2], {"loss": [2.0, 1.0, 0.5]})
