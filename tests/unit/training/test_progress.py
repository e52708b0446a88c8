"""Progress of ``fit``, with a stand-in for Keras."""

import inspect

import pytest

from spark_tensorflow_distributor.training import fit_hooks, progress


@pytest.fixture
def report(keras):
    """Return a function that lets ``fit`` report to a receiver."""

    def report(send):
        fit_hooks.hook_methods([keras], [progress.report_fit_progress(send)])

    return report


def test_fit_reports_its_progress(model, report, keras, monkeypatch):
    messages = []
    report(messages.append)
    clock = iter([10.0, 10.1, 10.2, 10.3])  # read once per step
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    callbacks = [keras.callbacks.Callback()]
    assert model.fit("x", "y", epochs=2, callbacks=callbacks) == "history"
    assert len(callbacks) == 1
    assert messages == [
        {"event": "fit_begin", "epochs": 2, "steps": 2},
        {"event": "step", "epoch": 0, "step": 1, "loss": 0.5, "samples": 32},
        {"event": "epoch_end", "epoch": 0, "step": 2, "logs": {"loss": 0.25}},
        {"event": "step", "epoch": 1, "step": 1, "loss": 0.5, "samples": 96},
        {"event": "epoch_end", "epoch": 1, "step": 2, "logs": {"loss": 0.25}},
        {"event": "fit_end"},
    ]


def test_a_later_receiver_replaces_the_first(model, report):
    first, second = [], []
    report(first.append)
    progress.report_fit_progress(second.append)
    model.fit()
    assert first == []
    assert [message["event"] for message in second] == ["fit_begin", "step", "epoch_end", "fit_end"]


def test_fit_keeps_its_signature_and_docstring(model, report):
    signature, text = inspect.signature(model.fit), model.fit.__doc__
    report(print)
    assert (inspect.signature(model.fit), model.fit.__doc__) == (signature, text)


def test_wrong_arguments_raise_the_errors_of_keras(model, report):
    report(print)
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'"):
        model.fit(epoch=3)


def test_a_callback_list_is_restored(model, report, keras):
    messages = []
    report(messages.append)
    callbacks = keras.callbacks.CallbackList([keras.callbacks.Callback()])
    before = list(callbacks.callbacks)
    model.fit(epochs=1, callbacks=callbacks)
    assert model.callbacks is callbacks
    assert callbacks.callbacks == before
    assert messages[0] == {"event": "fit_begin", "epochs": 1, "steps": None}
    assert messages[-1] == {"event": "fit_end"}


@pytest.mark.parametrize(
    "callbacks",
    [lambda _: None, lambda _: [], lambda _: (), lambda keras: keras.Callback(), lambda keras: (keras.Callback(),)],
)
def test_callbacks_may_have_any_form_that_keras_takes(model, report, keras, callbacks):
    messages = []
    report(messages.append)
    model.fit(callbacks=callbacks(keras.callbacks))
    assert messages[-1] == {"event": "fit_end"}


def test_a_failing_receiver_stops_the_reports_but_not_training(model, report):
    messages = []

    def send(message):
        messages.append(message)
        raise BrokenPipeError

    report(send)
    assert model.fit(epochs=3) == "history"
    assert model.fit() == "history"
    assert len(messages) == 1


def test_a_fit_that_raises_reports_its_end(model, report, keras):
    messages = []
    report(messages.append)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, *_):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model.fit(callbacks=Stop())
    assert messages[-1] == {"event": "fit_end"}


def dataset(kind, **attributes):
    """Return a stand-in for a tf.data transformation, which is recognised by its class name."""
    source = attributes.pop("source", None)
    return type(kind, (), {"_inputs": lambda self: [source], **attributes})()


@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        ({"x": [[1.0]], "y": [1]}, 32),
        ({"x": [[1.0]], "y": [1], "batch_size": 8}, 8),
        ({"x": [[1.0]], "batch_size": 8}, 8),
        ({"x": dataset("_BatchDataset", _batch_size=64)}, 64),
        ({"x": dataset("_PrefetchDataset", source=dataset("_ParallelBatchDataset", _batch_size=64))}, 64),
        ({"x": dataset("CacheDataset", source=dataset("_MapDataset", source=dataset("_B", _batch_size=9)))}, 9),
        ({"x": dataset("_MapDataset", global_batch_size=128, source=dataset("_BatchDataset", _batch_size=64))}, 128),
        ({"x": dataset("_UnbatchDataset", source=dataset("_BatchDataset", _batch_size=64))}, None),
        ({"x": dataset("_FlatMapDataset", source=dataset("_BatchDataset", _batch_size=64))}, None),
        ({"x": iter([])}, None),
        ({}, None),
    ],
)
def test_the_batch_size_is_read_from_the_arguments_of_fit(arguments, batch):
    assert progress.global_batch_of(**arguments) == batch
