"""The hooks between two steps, with stand-ins for Keras' loops."""

from spark_tensorflow_distributor.training import step_hooks


class Listener:
    def __init__(self, done=0, skipped=0, batches=0):
        self.done, self.skipped, self.batches = done, skipped, batches
        self.calls, self.training, self.later = [], True, 0

    def claims_epoch(self):
        return self.training

    def begin_epoch(self, epoch):
        self.calls.append(f"epoch {epoch}")

    def claims_fit(self):
        return self.training

    def first_epoch(self, asked_for):
        return asked_for + self.later

    def arrive(self):
        self.has_arrived = True

    def made_iterator(self):
        self.calls.append("iterator")

    def start(self, skip_epochs):
        more = skip_epochs(self.skipped, 3) if self.skipped else 0
        done, batches, self.done, self.batches, self.skipped = self.done, self.batches, 0, 0, 0
        return done, batches + more

    def after_step(self, count, *, is_last=False):
        assert count == 1
        self.calls.append("last step" if is_last else "step")

    def alive(self):
        self.calls.append("alive")


class TFDatasetAdapter:
    def __init__(self, data):
        self.data = data

    def get_tf_dataset(self):
        return self.data


class Data:
    """Counts its iterators, and yields the number of the iterator with each batch."""

    def __init__(self, batches):
        self.batches, self.iterators = batches, 0

    def __iter__(self):
        self.iterators += 1
        number = self.iterators
        return iter([(number, batch) for batch in range(self.batches)])


def keras_loop(knows_length=True, steps_per_epoch=None, batches=3):
    """Return a stand-in for Keras' epoch iterator."""

    class Loop:
        steps_per_execution = 1

        def __init__(self):
            self.data = Data(batches)
            self.data_adapter = TFDatasetAdapter(self.data)
            self.steps_per_epoch = steps_per_epoch
            self._distributed_dataset = self.data
            self._num_batches = batches if knows_length else None
            self._current_iterator = None

        def _get_iterator(self):
            return self._distributed_dataset

        def _enumerate_iterator(self):
            steps = self.steps_per_epoch or self._num_batches
            if steps:
                if self._current_iterator is None or self.steps_per_epoch is None:
                    self._current_iterator = iter(self._get_iterator())
                for step in range(steps):
                    yield step, step, self._current_iterator
                if not self.steps_per_epoch:
                    self._current_iterator = iter(self._get_iterator())
            else:
                iterator = iter(self._get_iterator())
                step = -1
                while True:
                    step += 1
                    yield step, step, iterator

    return Loop


def epoch_of(loop):
    """Run one epoch as ``fit`` does."""
    seen = []
    for begin, _, iterator in loop._enumerate_iterator():
        batch = next(iterator, None)
        if batch is None:
            break
        seen.append((begin, batch))
    return seen


def test_the_listener_is_called_between_the_steps():
    listener, kind = Listener(), keras_loop()
    step_hooks._hook_keras(kind, listener)
    loop = kind()
    assert [begin for begin, _ in epoch_of(loop)] == [0, 1, 2]
    assert listener.calls == ["iterator", "step", "step", "iterator", "last step"]
    listener.training, listener.calls = False, []
    epoch_of(loop)
    assert set(listener.calls) == {"alive", "iterator"}


def test_training_resumes_in_the_order_that_it_would_have_had():
    for knows_length in (True, False):
        whole_kind, kind = keras_loop(knows_length), keras_loop(knows_length)
        step_hooks._hook_keras(whole_kind, Listener())
        whole = whole_kind()
        epochs = []
        for _ in range(4):
            epochs.append(epoch_of(whole))
            if not knows_length:
                whole._num_batches = 4  # Keras counts the step at which it was out of data
        step_hooks._hook_keras(kind, Listener(done=1, skipped=2, batches=1))
        again = kind()
        assert epoch_of(again) == epochs[2][1:]
        if not knows_length:
            again._num_batches = 4
        assert epoch_of(again) == epochs[3]


def test_a_single_stream_over_all_epochs_is_read_up_to_the_position():
    kind = keras_loop(steps_per_epoch=2, batches=20)
    step_hooks._hook_keras(kind, Listener(done=1, skipped=3, batches=1))
    assert epoch_of(kind()) == [(1, (1, 7))]


def test_the_loops_of_tf_keras():
    class Handler:
        _initial_epoch, _initial_step, step_increment = 0, 0, 0

        class _adapter:
            data, ended = Data(3), 0

            @classmethod
            def on_epoch_end(cls):
                cls.ended += 1

            @staticmethod
            def should_recreate_iterator():
                return True

            @staticmethod
            def get_dataset():
                return Handler._adapter.data

        def enumerate_epochs(self):
            for epoch in range(self._initial_epoch, 4):
                yield epoch, iter(self._adapter.data)

        def steps(self):
            yield from range(self._initial_step, 3)
            self._initial_step = 0

    listener = Listener(done=1, skipped=2, batches=1)
    listener.later = 2
    step_hooks._hook_tf_keras(Handler, listener)
    handler = Handler()
    seen = []
    for epoch, iterator in handler.enumerate_epochs():
        for step in handler.steps():
            seen.append((epoch, step, next(iterator)))
    assert seen == [
        (2, 1, (3, 1)), (2, 2, (3, 2)),
        (3, 0, (4, 0)), (3, 1, (4, 1)), (3, 2, (4, 2)),
    ]  # fmt: skip
    assert listener.has_arrived
    assert Handler._adapter.ended == 2  # for the skipped epochs; the stand-in itself does not call it
    assert [call for call in listener.calls if call.startswith("epoch")] == ["epoch 2", "epoch 3", "epoch 4"]
