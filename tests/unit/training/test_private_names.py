"""The table of private names, with stand-ins for the packages."""

import ast
import functools
import sys
import types
from pathlib import Path

import pytest

from spark_tensorflow_distributor.training import fork_safety, private_names


def test_every_entry_has_names_and_a_reason():
    assert len({entry.path for entry in private_names.PRIVATE_MODULES}) == len(private_names.PRIVATE_MODULES) > 20
    assert all(entry.reason and (entry.names or entry.attributes) for entry in private_names.PRIVATE_MODULES)
    assert all(name.count(".") == 1 for entry in private_names.PRIVATE_MODULES for name in entry.attributes)


class NamesInUse(ast.NodeVisitor):
    """Finds what a module uses from the private modules that it loads.

    That is ``ENTRY.load().name``, and ``module.name`` where a function has ``module = ENTRY.load()``.
    """

    def __init__(self):
        self.found, self.variables = set(), {}

    @staticmethod
    def entry(node):
        match node:
            case ast.Call(ast.Attribute(ast.Name(name), "load" | "loaded")) if name.isupper():
                return name
        return None

    def visit_FunctionDef(self, node):
        outer, self.variables = self.variables, dict(self.variables)
        for each in ast.walk(node):
            if isinstance(each, ast.Assign | ast.AnnAssign) and (entry := self.entry(each.value)):
                (target,) = each.targets if isinstance(each, ast.Assign) else [each.target]
                self.variables[target.id] = entry
        self.generic_visit(node)
        self.variables = outer

    def visit_Attribute(self, node):
        name = node.value.id if isinstance(node.value, ast.Name) else None
        entry = self.entry(node.value) or self.variables.get(name)
        if entry and not node.attr.startswith("__"):
            self.found.add((entry, node.attr))
        self.generic_visit(node)


@pytest.fixture(scope="module")
def names_in_use():
    visitor = NamesInUse()
    for path in Path(fork_safety.__file__).parents[1].rglob("*.py"):
        visitor.visit(ast.parse(path.read_text()))
    return visitor.found


def test_the_table_has_what_the_modules_use(names_in_use):
    assert len({entry for entry, _ in names_in_use}) > 20
    for entry, name in names_in_use:
        assert name in {each.partition(".")[0] for each in getattr(private_names, entry).names}, entry


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


def test_attributes_of_objects_are_found_in_the_code_of_their_class(monkeypatch):
    class Base:
        def __init__(self):
            self._of_base = None

    class Model(Base):
        @functools.wraps(Base.__init__)
        def _wrapped(self):
            self._of_wrapper = None

        @staticmethod
        def restart(model):
            model._of_static_method = None

    names = ("_of_base", "_of_wrapper", "_of_static_method", "_gone")
    attributes = (*(f"Model.{name}" for name in names), "Gone._of_base")
    entry = private_names.PrivateModule("made_up.inside", (), "this test", attributes)
    module = types.ModuleType("made_up.inside")
    module.Model = Model
    monkeypatch.setitem(sys.modules, "made_up", types.ModuleType("made_up"))
    monkeypatch.setitem(sys.modules, "made_up.inside", module)
    # The wrapped function is the one of the package; the wrapper is a patch of this library.
    missing = ["Model._of_wrapper", "Model._gone", "Gone._of_base"]
    assert entry.missing() == [f"made_up.inside.{name}" for name in missing]


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
