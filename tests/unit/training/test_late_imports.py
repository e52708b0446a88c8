"""Changing modules as soon as they are imported."""

import importlib
import sys

from spark_tensorflow_distributor.training.late_imports import call_after_import


def test_several_may_wait_for_the_same_module(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text("value = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = []
    before = list(sys.meta_path)
    names = [["imported_late"], ["another", "imported_late"], ["another"]]
    finders = [
        call_after_import(each, lambda module, number=number: calls.append((number, module.value)))
        for number, each in enumerate(names)
    ]
    try:
        assert importlib.import_module("imported_late").value == 1
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        sys.modules.pop("imported_late", None)
    assert sorted(calls) == [(0, 1), (1, 1)]
    assert sys.meta_path == before
