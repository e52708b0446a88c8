"""Imports a package from sources held in memory.

The text of this file travels with every run and is executed on the executors before the package can be imported there.
It must therefore be self-contained: standard library only, no relative imports.
"""

import hashlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def fingerprint(sources: dict[str, str]) -> str:
    """Return a hash of a package's sources, given as a dict of relative path ("runtime/wire.py") to text."""
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.encode() + b"\0" + sources[path].encode() + b"\0")
    return digest.hexdigest()


def read_sources(directory: str) -> dict[str, str]:
    """Read the ``.py`` files below a package's directory into a dict of relative path to text."""
    sources = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8") as file:
                    sources[os.path.relpath(path, directory).replace(os.sep, "/")] = file.read()
    return sources


class MemoryImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads the modules of one package from memory, in preference to an installed copy."""

    def __init__(self, package: str, sources: dict[str, str]) -> None:
        self.package = package
        self.fingerprint = fingerprint(sources)
        self.modules: dict[str, tuple[str, bool, str]] = {}  # text, is_package, path
        for path, text in sources.items():
            parts = path[: -len(".py")].split("/")
            is_package = parts[-1] == "__init__"
            name = ".".join([package, *(parts[:-1] if is_package else parts)])
            self.modules[name] = (text, is_package, path)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.modules:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=self.modules[name][1])

    def exec_module(self, module: ModuleType) -> None:
        text, _, path = self.modules[module.__name__]
        # The library's own source, from the driver.
        code = compile(text, f"<{self.package}>/{path}", "exec")
        exec(code, module.__dict__)  # noqa: S102

    def get_source(self, name: str) -> str:
        return self.modules[name][0]


def install(package: str, sources: dict[str, str]) -> None:
    """Make ``import package`` load exactly these sources; do nothing if it already does."""
    wanted = fingerprint(sources)
    finders = [finder for finder in sys.meta_path if getattr(finder, "package", None) == package]
    if any(getattr(finder, "fingerprint", None) == wanted for finder in finders):
        return
    if not finders and _installed_fingerprint(package) == wanted:
        return
    # A reused Python worker may hold another version from an earlier run.
    for name in list(sys.modules):
        if name == package or name.startswith(package + "."):
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in finders]
    sys.meta_path.insert(0, MemoryImporter(package, sources))


def _installed_fingerprint(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return None
    return fingerprint(read_sources(os.path.dirname(spec.origin)))
