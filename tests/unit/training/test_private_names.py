"""The table of private names, with stand-ins for the packages."""

import sys
import types

from spark_tensorflow_distributor.training import fork_safety, private_names


def test_every_entry_has_names_and_a_reason():
    assert len({entry.path for entry in private_names.PRIVATE_MODULES}) == len(private_names.PRIVATE_MODULES) > 20
    assert all(entry.names and entry.reason for entry in private_names.PRIVATE_MODULES)


def test_missing_names_are_reported_once_with_the_release(monkeypatch):
    entries = [
        private_names.PrivateModule("made_up.inside", ("Model.fit", "Model._step", "gone"), "this test"),
        private_names.PrivateModule("made_up.lost", ("name",), "this test"),
        private_names.PrivateModule("other.lost", ("name",), "this test"),
    ]
    monkeypatch.setattr(private_names, "PRIVATE_MODULES", entries)
    package, inside = types.ModuleType("made_up"), types.ModuleType("made_up.inside")
    package.__version__, inside.Model = "4.2", type("Model", (), {"fit": None})
    monkeypatch.setitem(sys.modules, "made_up", package)
    monkeypatch.setitem(sys.modules, "made_up.inside", inside)
    warning = private_names.missing_names_warning([package])
    assert "made_up 4.2" in warning
    assert "made_up.inside.Model._step, made_up.inside.gone, made_up.lost, which" in warning
    inside.Model._step = inside.gone = None
    monkeypatch.setattr(private_names, "PRIVATE_MODULES", entries[:1])
    assert private_names.missing_names_warning([package]) is None


def test_an_eager_context_is_noticed(monkeypatch):
    path = private_names.EAGER_CONTEXT.path
    monkeypatch.delitem(sys.modules, path, raising=False)
    assert not fork_safety.has_eager_context()
    module = types.SimpleNamespace(_context=None)
    monkeypatch.setitem(sys.modules, path, module)
    assert not fork_safety.has_eager_context()
    module._context = types.SimpleNamespace(_context_handle=None)
    assert not fork_safety.has_eager_context()
    module._context._context_handle = object()
    assert fork_safety.has_eager_context()
