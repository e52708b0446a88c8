"""What callbacks have learned, with a stand-in for Keras' own."""

from types import SimpleNamespace

from spark_tensorflow_distributor.resume.callback_state import (
    callback_states,
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
    first, baseline = EarlyStopping(), callback_states([EarlyStopping()])
    for value in (5.0, 3.0, 4.0):
        first.on_epoch_end(value)
    second = EarlyStopping()
    restore_callbacks([second], callback_states([first], baseline))
    assert (second.best, second.wait) == (3.0, 1)
    second.on_epoch_end(4.0)
    assert (second.best, second.wait, second.min_delta) == (3.0, 2, -1.0)
    second.on_epoch_end(2.0)
    assert (second.best, second.wait, second.min_delta) == (2.0, 0, -1.0)


def test_constructor_arguments_are_not_restored():
    first, baseline = SimpleNamespace(path="a", best=1), callback_states([SimpleNamespace(path="a", best=1)])
    first.best = 2
    second = SimpleNamespace(path="b", best=1)
    restore_callbacks([second], callback_states([first], baseline))
    assert second == SimpleNamespace(path="b", best=2)


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
