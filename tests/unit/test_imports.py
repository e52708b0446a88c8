"""Which part of the package may import which, read from the sources: lazy imports and those for types count, too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import spark_tensorflow_distributor as std

PACKAGE = "spark_tensorflow_distributor"
ROOT = Path(std.__file__).parent

# Each room may import itself and the rooms before it.
ROOMS = ["errors", "formatting", "context", "data", "training", "resume", "config", "runtime", "runner", "ml"]

# Inference runs in Spark's ordinary tasks, beside the rooms above: it uses the data's and these tools of others.
TOOLS_OF_INFERENCE = {
    "runtime.devices",
    "runtime.driver.spark",
    "runtime.process_tools",
    "runtime.shipping",
    "training.autograph_files",
    "training.keras_api",
}

# The processes of a run share what is in runtime/ itself, and nothing else.
PROCESSES = {"runtime.driver", "runtime.agent", "runtime.trainer"}

# Private names of others, and the only places that may use them.
PRIVATE_NAMES = {
    "tensorflow.python": ["training/private_names.py"],
    "keras.src": ["training/private_names.py"],
    "tf_keras.src": ["training/private_names.py"],
    "_jsc": ["runtime/driver/spark.py", "data/frames.py"],
    "_jvm": ["runtime/driver/spark.py", "data/frames.py"],
    "_jdf": ["runtime/driver/spark.py", "data/frames.py"],
}


def module_of(path: Path) -> str:
    """The module's name within the package: ``"data.frames"``; ``""`` is the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(module: str) -> Iterator[str]:
    """The package's modules that this one imports."""
    path = MODULES[module]
    folder = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = folder[: len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            name = ".".join([*base, alias.name])
            yield name if name in MODULES else ".".join(base)


IMPORTS = {module: sorted(set(imports_of(module))) for module in MODULES if module}


def process_of(module: str) -> str | None:
    return next((process for process in PROCESSES if f"{module}.".startswith(f"{process}.")), None)


def may_import(importer: str, imported: str) -> bool:
    rooms = importer.split(".")[0], imported.split(".")[0]
    if rooms[0] == "inference":
        return rooms[1] in ("errors", "formatting", "data", "inference") or imported in TOOLS_OF_INFERENCE
    if rooms[1] == "inference":
        return False
    if not set(rooms) <= set(ROOMS) or ROOMS.index(rooms[1]) > ROOMS.index(rooms[0]):
        return False
    other = process_of(imported)
    return rooms[0] != "runtime" or other in (None, process_of(importer))


def test_rooms_import_only_what_lies_below_them():
    found = {
        f"{importer} -> {imported}"
        for importer, targets in IMPORTS.items()
        for imported in targets
        if not may_import(importer, imported)
    }
    assert found == set()


def test_no_import_circle():
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


def private_names_in(path: Path) -> Iterator[str]:
    """The names of ``PRIVATE_NAMES`` that a file uses, as attributes, imports or module names in texts."""
    for node in ast.walk(ast.parse(path.read_text())):
        texts = []
        if isinstance(node, ast.Import):
            texts = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            texts = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr, ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            texts = [node.value]
        for name in PRIVATE_NAMES:
            if any(text == name or f"{text}.".startswith(f"{name}.") for text in texts):
                yield name


def test_private_names_of_others_are_used_only_where_they_are_allowed():
    found = {
        f"{module_of(path)}: {name}"
        for path in MODULES.values()
        for name in private_names_in(path)
        if not any(path.relative_to(ROOT).as_posix().startswith(place) for place in PRIVATE_NAMES[name])
    }
    assert found == set()


def test_driver_and_agent_reach_no_module_that_imports_tensorflow_at_its_top():
    """Lazy imports count, too; only local_mode trains in the driver's process."""
    waiting = [module for module in IMPORTS if process_of(module) in ("runtime.driver", "runtime.agent")]
    light = {"runtime.driver.local"}
    while waiting:
        module = waiting.pop()
        if module not in light:
            light.add(module)
            waiting += IMPORTS.get(module, ())
    assert {module for module in light if "\nimport tensorflow" in MODULES[module].read_text()} == set()
