"""Writes and reads files where Spark writes: on local disks, HDFS and object stores, through Hadoop's file systems."""

import logging
from typing import Any

from ..errors import SerializationError
from ..formatting import mebibytes, one_line
from ..runtime.driver.spark import CONNECT_LIMIT, is_connect

_log = logging.getLogger(__name__)

# Python's bytes travel to the JVM as text, piece by piece.
_PIECE = 4 << 20


def format_of(spark: Any) -> str:
    """Return how :func:`write_file` stores a file: ``"file"``, or ``"parquet"`` with Spark Connect.

    A client of Spark Connect cannot write files itself; Spark's own writers make tables only.
    """
    return "parquet" if is_connect(spark) else "file"


def path_exists(spark: Any, path: str) -> bool:
    """Return whether there is a file or folder; always False for a client of Spark Connect, which cannot know.

    Args:
        spark: The session.
        path: A path or URL, as Spark's writers take it.
    """
    if is_connect(spark):
        return False
    system, target = _hadoop(spark, path)
    return bool(system.exists(target))


def _hadoop(spark: Any, path: str) -> tuple[Any, Any]:
    """Return Hadoop's file system of a path, and the path as it takes it."""
    target = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(path)
    return target.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf()), target


def write_file(spark: Any, path: str, data: bytes) -> None:
    """Write a file that must not exist.

    Args:
        spark: The session.
        path: A path or URL, as Spark's writers take it.
        data: The content.

    Raises:
        SerializationError: The file cannot be written.
    """
    try:
        _write_table(spark, path, data) if is_connect(spark) else _write_file(spark, path, data)
    except SerializationError:
        raise
    except Exception as error:
        raise SerializationError(f"The file {path} cannot be written: {one_line(error)}") from error


def _write_file(spark: Any, path: str, data: bytes) -> None:
    system, target = _hadoop(spark, path)
    stream = system.create(target, False)
    try:
        for start in range(0, len(data), _PIECE):
            stream.write(data[start : start + _PIECE])
    finally:
        stream.close()


def _write_table(spark: Any, path: str, data: bytes) -> None:
    if len(data) > CONNECT_LIMIT:
        raise SerializationError(
            f"The file {path} of {mebibytes(len(data))} cannot be written through Spark Connect, which is "
            f"limited to {mebibytes(CONNECT_LIMIT)}. Save the Keras model (model.kerasModel.save), or use a classic "
            "session."
        )
    rows = [(number, data[start : start + _PIECE]) for number, start in enumerate(range(0, len(data), _PIECE))]
    spark.createDataFrame(rows, "number int, data binary").coalesce(1).write.parquet(path)


def delete_folder(spark: Any, path: str) -> None:
    """Delete a folder, and its parent if that is then empty; does nothing for a client of Spark Connect.

    If that fails, it only logs a warning, because the caller has another error to raise.

    Args:
        spark: The session.
        path: A path or URL.
    """
    if is_connect(spark):
        return
    try:
        system, target = _hadoop(spark, path)
        system.delete(target, True)
        if len(system.listStatus(target.getParent())) == 0:
            system.delete(target.getParent(), False)
    except Exception as error:
        _log.warning("The folder %s cannot be deleted: %s", path, one_line(error))


def read_file(spark: Any, path: str, stored_as: str) -> bytes:
    """Read a file that :func:`write_file` has written.

    Args:
        spark: The session, of either kind.
        path: The path.
        stored_as: What :func:`format_of` said when it was written.

    Raises:
        SerializationError: The file cannot be read.
    """
    try:
        if stored_as == "parquet":
            rows = spark.read.parquet(path).orderBy("number").collect()
            return b"".join(bytes(row["data"]) for row in rows)
        row = spark.read.format("binaryFile").load(path).select("content").first()
    except Exception as error:
        raise SerializationError(f"The file {path} cannot be read: {one_line(error)}") from error
    if row is None:
        raise SerializationError(f"There is no file {path}.")
    return bytes(row["content"])
