"""Writes the files that a run needs on disk: the caller's modules, and broadcast values that Spark has decrypted."""

import io
import os
import shutil
import tempfile
import zipfile


class ProgramFiles:
    """Manages a folder that is created with the first file and removed by :meth:`close`.

    Args:
        directory: Where to create the folder. In Spark's local directory, Spark removes it with the application, even
            after a crash.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._folder: str | None = None

    def write(self, data: bytes) -> str:
        """Write a file; return its path."""
        descriptor, path = tempfile.mkstemp(dir=self._own_folder())
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        return path

    def unpack(self, archive: bytes) -> tuple[str, ...]:
        """Unpack a zip archive of modules; return the entry for ``sys.path``, none for an empty archive."""
        if not archive:
            return ()
        folder = tempfile.mkdtemp(prefix="modules-", dir=self._own_folder())
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            packed.extractall(folder)
        return (folder,)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _own_folder(self) -> str:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="spark-tensorflow-", dir=self._directory)
        return self._folder
