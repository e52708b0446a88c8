"""The library's source files, and which of its modules a file refers to, for the tests of the rules for the source."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import spark_tensorflow_distributor as std

PACKAGE = "spark_tensorflow_distributor"
ROOT = Path(std.__file__).parent


def module_of(path: Path) -> str:
    """Return the module's name within the package: ``"data.frames"``; ``""`` is the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


# A parsed file serves several tests.
parsed = functools.cache(ast.parse)


def imports_of(text: str, module: str) -> Iterator[str]:
    """Yield the package's modules that a module imports, also lazily, for types, or with ``import_module("..name")``.

    A public name of the package itself stands for the module that defines it.

    Args:
        text: The module's source.
        module: Its name within the package, from which relative imports start.
    """
    names = module.split(".") if module else []
    folder = names if MODULES[module].name == "__init__.py" else names[:-1]
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
            yield from (".".join(rest) for first, *rest in paths if first == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*folder[: len(folder) - node.level + 1], *base]
            elif base.pop(0) != PACKAGE:
                continue
            for alias in node.names:
                name = ".".join([*base, alias.name])
                found = name if base else std._HOMES.get(name, name)
                yield found if found in MODULES else ".".join(base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("."):
            rest = node.value.lstrip(".")
            up = len(node.value) - len(rest) - 1
            name = ".".join([*folder[: len(folder) - up], rest])
            if rest and up <= len(folder) and name in MODULES:
                yield name


def modules_named_in(text: str) -> Iterator[str]:
    """Yield the package's modules that source text names in strings, as in ``shipped("inference.worker", ...)``."""
    tree = parsed(text)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # f"{PACKAGE}.runtime.wire"
            parts = [each.value if isinstance(each, ast.Constant) else ast.unparse(each.value) for each in node.values]
            value = "".join(PACKAGE if part == "PACKAGE" else part for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            value = node.value
        else:
            continue
        if "." in value and value in MODULES:
            yield value
        for found in re.finditer(rf"\b{PACKAGE}\.([a-z_.]+)(?: import (\w+))?", value):
            names = [name for name in (f"{found[1]}.{found[2]}", found[1]) if name in MODULES]
            yield from names[:1]
