"""Adds bytecode to the zip files from which Spark's Python workers import PySpark and Py4J, in this environment.

They contain only sources, which every Python worker would compile first: tests start hundreds of workers.
"""

import os
import py_compile
import tempfile
import zipfile
from pathlib import Path

import pyspark


def add_bytecode(path: Path) -> None:
    """Add bytecode next to the modules in a zip file, unless it has some; the file is replaced as a whole."""
    with zipfile.ZipFile(path) as source, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        names = source.namelist()
        if any(name.endswith(".pyc") for name in names):
            return
        made = Path(folder, path.name)
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
            for name in names:
                content = source.read(name)
                target.writestr(name, content)
                if name.endswith(".py") and "/tests/" not in name:
                    target.writestr(f"{name}c", _compiled(content, name, Path(folder)))
        os.replace(made, path)


def _compiled(source: bytes, name: str, folder: Path) -> bytes:
    file = folder / "module.py"
    file.write_bytes(source)
    # Unchecked, because a zip file stores times of modification without a time zone.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = py_compile.compile(str(file), str(file) + "c", dfile=name, doraise=True, invalidation_mode=mode)
    return Path(compiled).read_bytes()


if __name__ == "__main__":
    for archive in Path(pyspark.__file__).parent.glob("python/lib/*.zip"):
        add_bytecode(archive)
