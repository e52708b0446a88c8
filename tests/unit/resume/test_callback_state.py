"""What callbacks have learned, with stand-ins for those of Keras."""

import pytest

from spark_tensorflow_distributor.resume.callback_state import callback_states, restore_callbacks


class EarlyStopping:
    """Of Keras 3.5, which begins anew when it looks what better means; and of later ones, which do not."""

    def __init__(self, forgets):
        self.forgets, self.monitor_op, self.best, self.wait, self.min_delta = forgets, None, None, 0, 1.0

    def _set_monitor_op(self):
        self.monitor_op = min
        self.min_delta *= -1
        if self.forgets:
            self.best = float("inf")

    def on_epoch_end(self, value):
        if self.monitor_op is None:
            self._set_monitor_op()
        self.wait += 1
        if self.best is None or value < self.best:
            self.best, self.wait = value, 0


@pytest.mark.parametrize("forgets", [True, False])
def test_the_best_value_stays(forgets):
    first, begun = EarlyStopping(forgets), callback_states([EarlyStopping(forgets)])
    for value in (5.0, 3.0, 4.0):
        first.on_epoch_end(value)
    second = EarlyStopping(forgets)
    restore_callbacks([second], callback_states([first], begun))
    assert (second.best, second.wait) == (3.0, 1)
    second.on_epoch_end(4.0)
    assert (second.best, second.wait, second.min_delta) == (3.0, 2, -1.0)
    second.on_epoch_end(2.0)
    assert (second.best, second.wait, second.min_delta) == (2.0, 0, -1.0)
