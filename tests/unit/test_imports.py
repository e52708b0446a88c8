"""Checks in the sources which package imports which: at the top, lazily, for types, and by names in strings."""

import pytest

from sources import MODULES, imports_of, modules_named_in

# Each package may import itself and the packages before it.
PACKAGES = [
    "lazy",
    "formatting",
    "redaction",
    "errors",
    "context",
    "transport",
    "process_group",
    "data",
    "training",
    "resume",
    "config",
    "runtime",
    "runner",
    "tracking",
    "ml",
    "cli",
    "__main__",
]

# Inference runs in Spark's ordinary tasks, apart from the packages above: it uses data/ and these tools of others. Of
# those packages, only ml, whose models predict, and cli, whose demo predicts, use it.
TOOLS_OF_INFERENCE = {
    "runtime.devices",
    "runtime.driver.spark",
    "runtime.process_tools",
    "runtime.shipping",
    "training.autograph_files",
    "training.keras_api",
    "training.keras_internals",
    "training.keras_pickle",
}

# The processes of a run share only the modules in runtime/ itself.
PROCESSES = {"runtime.driver", "runtime.agent", "runtime.trainer"}

# Modules of one process that another one names, to start it.
STARTED = {
    ("runtime.shipping", "runtime.agent.task"),
    ("runtime.agent.task", "runtime.trainer.preload"),
    ("runtime.process_tools", "runtime.trainer.forkserver"),
}

IMPORTS = {module: sorted({*imports_of(MODULES[module].read_text(), module)}) for module in MODULES if module}


def process_of(module: str) -> str | None:
    return next((process for process in PROCESSES if f"{module}.".startswith(f"{process}.")), None)


def may_import(importer: str, imported: str) -> bool:
    packages = importer.split(".")[0], imported.split(".")[0]
    if packages[0] == "inference":
        return packages[1] in ("errors", "formatting", "data", "inference") or imported in TOOLS_OF_INFERENCE
    if packages[1] == "inference":
        return packages[0] in ("ml", "cli")
    if not imported:  # the package itself: its version and public names
        return packages[0] in ("cli", "__main__")
    if not set(packages) <= set(PACKAGES) or PACKAGES.index(packages[1]) > PACKAGES.index(packages[0]):
        return False
    other = process_of(imported)
    return packages[0] != "runtime" or other in (None, process_of(importer))


def test_packages_import_only_packages_below_them():
    found = {
        f"{importer} -> {imported}"
        for importer, targets in IMPORTS.items()
        for imported in targets
        if not may_import(importer, imported)
    }
    assert found == set()


def test_modules_named_in_strings_are_in_packages_below_too():
    """Such a module is imported in another process, with the source that was shipped there."""
    found = {
        (importer, named)
        for importer in IMPORTS
        for named in modules_named_in(MODULES[importer].read_text())
        if not may_import(importer, named)
    }
    assert found == STARTED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from . import frames", ["data.frames"]),
        ("from .frames import frames_of", ["data.frames"]),
        ("from ..training import patches", ["training.patches"]),
        ("from spark_tensorflow_distributor.runtime import wire", ["runtime.wire"]),
        ("from spark_tensorflow_distributor import predict, errors", ["inference.predict", "errors"]),
        ("import spark_tensorflow_distributor.ml.files as files", ["ml.files"]),
        ("import spark_tensorflow_distributor", [""]),
        ("def lazily():\n    importlib.import_module('...data.store', __package__)", []),
        ("def lazily():\n    importlib.import_module('..training.patches', __package__)", ["training.patches"]),
        ("import os, tensorflow.python\nfrom pyspark.sql import types", []),
    ],
)
def test_every_form_of_import_is_seen(text, expected):
    assert list(imports_of(text, "data.columns")) == expected


def test_modules_are_seen_in_programs_and_arguments_but_not_in_documentation():
    text = (
        '"""See spark_tensorflow_distributor.data.frames."""\n'
        'shipped("inference.worker", "run")\n'
        'BOOT = "import sys; from spark_tensorflow_distributor.runtime.trainer import forkserver; forkserver.main()"\n'
        'PRELOAD = ("tensorflow", f"{PACKAGE}.runtime.trainer.preload")\n'
        'log = getLogger("spark_tensorflow_distributor.run")\n'
        'path = f"{folder}.data"\n'
    )
    assert {*modules_named_in(text)} == {"inference.worker", "runtime.trainer.forkserver", "runtime.trainer.preload"}


def test_no_import_cycles():
    visiting, done = [], set()

    def visit(module):
        assert module not in visiting, " -> ".join([*visiting[visiting.index(module) :], module])
        if module in done:
            return
        visiting.append(module)
        for imported in IMPORTS.get(module, ()):
            if imported != module:
                visit(imported)
        visiting.pop()
        done.add(module)

    for module in IMPORTS:
        visit(module)


def test_driver_and_agent_import_no_module_that_imports_tensorflow_at_top_level():
    """Lazy imports count, too; only local_mode trains in the driver's process."""
    waiting = [module for module in IMPORTS if process_of(module) in ("runtime.driver", "runtime.agent")]
    light = {"runtime.driver.local"}
    while waiting:
        module = waiting.pop()
        if module not in light:
            light.add(module)
            waiting += IMPORTS.get(module, ())
    assert {module for module in light if "\nimport tensorflow" in MODULES[module].read_text()} == set()
