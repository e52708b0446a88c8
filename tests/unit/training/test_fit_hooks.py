"""What is done around ``fit`` and its relatives, with a stand-in for Keras."""

import contextlib
import inspect

import pytest

from spark_tensorflow_distributor.training import fit_hooks


def recording(name, events):
    """Return a hook that records when it begins and ends, and the result that it sees."""

    @contextlib.contextmanager
    def hook(call):
        events.append((name, "begins", call.name))
        try:
            yield
        except Exception as error:
            events.append((name, "sees", type(error)))
            raise
        finally:
            events.append((name, "ends", call.result))

    return hook


def test_hooks_begin_in_order_and_end_in_reverse(model, keras):
    events = []
    fit_hooks.hook_methods([keras], [recording("a", events), recording("b", events)])
    assert model.fit() == "history"
    assert events == [
        ("a", "begins", "fit"),
        ("b", "begins", "fit"),
        ("b", "ends", "history"),
        ("a", "ends", "history"),
    ]


@pytest.mark.parametrize("name", fit_hooks.METHODS)
def test_every_method_is_hooked_in_the_class_that_defines_it(model, keras, name):
    seen = []

    @contextlib.contextmanager
    def hook(call):
        seen.append((call.name, call.model, call.package))
        yield

    expected = getattr(model, name)("x")
    fit_hooks.hook_methods([keras], [hook])
    assert getattr(model, name)("x") == expected
    assert seen == [(name, model, keras)]
    assert name not in vars(keras.Model)  # other subclasses of the base have it, too


def test_a_subclass_that_calls_its_base_is_hooked_once(keras):
    events = []
    fit_hooks.hook_methods([keras], [recording("a", events)])

    class Own(keras.Model):
        def fit(self, *args, **kwargs):
            return [super().fit(*args, **kwargs)]

    assert Own().fit() == ["history"]
    assert len(events) == 2


def test_a_hook_changes_the_arguments_of_a_call(model, keras):
    @fit_hooks.only("fit")
    @contextlib.contextmanager
    def hook(call):
        assert call.arguments["self"] is model
        call.arguments["verbose"] = call.arguments["batch_size"] + 1
        yield

    fit_hooks.hook_methods([keras], [hook])
    model.fit("x", None, 8)
    assert model.verbose == 9
    assert model.predict("x") == "auto"  # not one of the hook's methods


def test_calls_know_the_call_around_them(model, keras):
    found = []

    @contextlib.contextmanager
    def hook(call):
        assert fit_hooks.current_call() is call
        found.append((call.name, call.outer and call.outer.name, call.outer and call.outer.outer))
        yield
        assert fit_hooks.current_call() is call

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_end(self, *_):
            model.evaluate("x")

    fit_hooks.hook_methods([keras], [hook])
    model.fit(callbacks=[Evaluates()])
    model.predict("x")
    assert found == [("fit", None, None), ("evaluate", "fit", None), ("predict", None, None)]
    assert fit_hooks.current_call() is None


def test_an_exception_passes_through_the_hooks_in_reverse(model, keras):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, *_):
            raise InterruptedError

    events = []
    fit_hooks.hook_methods([keras], [recording("a", events), recording("b", events)])
    with pytest.raises(InterruptedError):
        model.fit(callbacks=Stop())
    assert events[2:] == [
        ("b", "sees", InterruptedError),
        ("b", "ends", None),
        ("a", "sees", InterruptedError),
        ("a", "ends", None),
    ]
    assert fit_hooks.current_call() is None


def test_a_hook_that_raises_ends_those_before_it_and_prevents_the_call(model, keras):
    @contextlib.contextmanager
    def refuse(call):
        raise LookupError
        yield

    events = []
    fit_hooks.hook_methods([keras], [recording("a", events), refuse, recording("c", events)])
    with pytest.raises(LookupError):
        model.fit()
    assert events == [("a", "begins", "fit"), ("a", "sees", LookupError), ("a", "ends", None)]
    assert not hasattr(model, "verbose")
    assert fit_hooks.current_call() is None


def test_wrong_arguments_raise_the_errors_of_keras(model, keras):
    events = []
    fit_hooks.hook_methods([keras], [recording("a", events), fit_hooks.quiet_auto_verbose(is_chief=True)])
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'"):
        model.fit(epoch=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model.predict()
    assert events == []


def test_methods_keep_their_signatures_and_docstrings(model, keras):
    before = [(inspect.signature(getattr(model, name)), getattr(model, name).__doc__) for name in fit_hooks.METHODS]
    fit_hooks.hook_methods([keras], [recording("a", [])])
    after = [(inspect.signature(getattr(model, name)), getattr(model, name).__doc__) for name in fit_hooks.METHODS]
    assert after == before


@pytest.mark.parametrize(("is_chief", "meaning"), [(True, 2), (False, 0)])
def test_only_auto_verbose_gets_a_meaning(model, keras, is_chief, meaning):
    fit_hooks.hook_methods([keras], [fit_hooks.quiet_auto_verbose(is_chief)])
    assert model.fit() == "history"
    assert model.verbose == meaning
    model.fit(None, None, 8, 1, "auto")
    assert model.verbose == meaning
    model.fit(None, None, 8, 1, 1)
    assert model.verbose == 1
    assert model.evaluate(steps=3) == (meaning, {"steps": 3})
    assert model.evaluate(verbose=0) == (0, {})
    assert model.predict("x") == meaning
    assert model.predict("x", verbose=1) == 1
