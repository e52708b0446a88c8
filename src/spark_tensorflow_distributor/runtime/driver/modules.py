"""Finds and packs the caller's own modules and packages (``py_modules``), and gives advice on missing ones."""

import importlib.util
import io
import os
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from ...errors import ConfigurationError
from ...formatting import a_type, mebibytes

_SPARKS_WAY = "SparkContext.addPyFile (SparkSession.addArtifacts on Spark Connect)"
_ARCHIVES = (".zip", ".egg", ".whl")
_SKIPPED_FOLDERS = ("__pycache__", ".git", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".venv")
# The archive travels with the Spark task; Spark Connect limits a message to 128 MiB.
_MAX_BYTES = 64 << 20


def pack_modules(modules: Sequence[ModuleType | str | os.PathLike[str]]) -> bytes:
    """Pack modules and packages, as they are on the driver's disk now, into a zip archive.

    Args:
        modules: Module objects, names that can be imported here, or paths of ``.py`` files, of packages' directories,
            or of archives whose contents are packed.

    Returns:
        The archive, whose root belongs on ``sys.path``; empty if there are no modules.

    Raises:
        ConfigurationError: A module cannot be found or has no files, or the archive is larger than 64 MiB.
    """
    if not modules:
        return b""
    files: dict[str, Path | bytes] = {}
    for module in modules:
        files.update(_files_of(module))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in sorted(files.items()):
            data = source if isinstance(source, bytes) else source.read_bytes()
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    if buffer.tell() > _MAX_BYTES:
        raise ConfigurationError(
            f"py_modules: {len(files)} files of {mebibytes(buffer.tell())} (compressed) are too many to travel with "
            f"each run; the limit is {mebibytes(_MAX_BYTES)}. Name only your own modules, and install large packages "
            "on the executors."
        )
    return buffer.getvalue()


def _files_of(module: object) -> Iterator[tuple[str, Path | bytes]]:
    """Yield a module's files with their names in the archive."""
    if isinstance(module, ModuleType):
        if module.__name__ == "__main__":
            raise ConfigurationError("py_modules contains __main__, whose functions travel with train_fn anyway.")
        name = module.__name__.partition(".")[0]
        yield from _files_of_spec(name, getattr(sys.modules.get(name, module), "__spec__", None))
    elif isinstance(module, os.PathLike):
        yield from _files_at(Path(module))
    elif isinstance(module, str):
        spec = _find_spec(module)
        if spec is not None:
            yield from _files_of_spec(module.partition(".")[0], spec)
        else:
            yield from _files_at(Path(module))
    else:
        raise ConfigurationError(
            f"py_modules contains {a_type(module)}; its entries must be module objects, names of modules, or paths."
        )


def _find_spec(name: str) -> ModuleSpec | None:
    """Return the spec of the top-level module of a name; None if it does not exist or is not a valid name."""
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")) or top == "__main__":
        return None
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module without a spec
        return None


def _files_of_spec(name: str, spec: ModuleSpec | None) -> Iterator[tuple[str, Path | bytes]]:
    archive = getattr(getattr(spec, "loader", None), "archive", None)
    if archive is not None:  # imported from a zip file, by zipimport
        yield from _files_at(Path(archive))
        return
    folders = list((spec and spec.submodule_search_locations) or ())
    if folders:
        for folder in reversed(folders):  # a namespace package has several; the first one takes precedence
            yield from _files_below(Path(folder), name)
    elif spec is not None and spec.has_location and spec.origin is not None:
        yield os.path.basename(spec.origin), Path(spec.origin)
    else:
        raise ConfigurationError(f"py_modules contains {name!r}, which has no file to send.")


def _files_at(path: Path) -> Iterator[tuple[str, Path | bytes]]:
    path = path.expanduser().absolute()
    if path.suffix in _ARCHIVES and path.is_file():
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    yield name, archive.read(name)
    elif path.is_dir():
        yield from _files_below(path, path.name)
    elif path.is_file():
        yield path.name, path
    else:
        raise ConfigurationError(
            f"py_modules contains {str(path)!r}, which is neither the name of a module that can be imported on the "
            "driver nor the path of a file or directory."
        )


def _files_below(folder: Path, name: str) -> Iterator[tuple[str, Path | bytes]]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if each not in _SKIPPED_FOLDERS]
        for file in files:
            path = Path(parent, file)
            if path.suffix != ".pyc" and path.is_file():
                yield f"{name}/{path.relative_to(folder).as_posix()}", path


def import_advice(missing: str) -> str:
    """Return what to do about a module that an executor cannot import.

    Args:
        missing: The module's name, with or without a package.
    """
    top = missing.partition(".")[0]
    spec = _find_spec(top)
    if spec is None:
        return (
            f"The driver cannot import {top!r} either. If it is a package, install it on the executors. If it is a "
            f"file of yours, send it along with py_modules=[its path], or with {_SPARKS_WAY}."
        )
    path = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    if path is None or _is_installed(path):
        return f"The driver has {top!r} installed, the executors do not: install it there, in the driver's version."
    return (
        f"{top!r} is a module of yours, which the driver imports from {path}. Send it along with "
        f"py_modules=[{top!r}], or with {_SPARKS_WAY}."
    )


def _is_installed(path: str) -> bool:
    folders = (sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    parts = Path(path).parts
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or any(Path(path).is_relative_to(folder) for folder in folders)
    )
