"""What crosses between the driver, the agents and the trainers.

Three kinds of things cross:

* a :class:`TaskSpec`, from the driver to every agent, inside the Spark task;
* frames, on the sockets between driver and agent and between agent and trainer: a length in four bytes, most
  significant first, then a JSON object. JSON, because nothing read from a socket is unpickled before its sender
  is known;
* rows ``(rank, kind, seq, data)``, from the agents to the driver, through Spark: reports, and chunks of the result
  where the driver's channel could not take it.

Both ends always run the same source (see ``shipping``), so the formats carry no version of their own.
"""

import base64
import contextlib
import hashlib
import hmac
import importlib.metadata
import io
import json
import pickle
import secrets
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO

from .columns import Column
from .errors import RendezvousError, WorkerFailure

# One row of the Spark job's output.
ROW_SCHEMA = "rank int, kind string, seq int, data binary"
CHUNK_BYTES = 1 << 20

# Marks a failure record inside the text of a Spark error; see encode_failure.
_MARK = "spark_tensorflow_distributor-failure:"

_HEADER = struct.Struct(">I")
_MAX_FRAME = 64 << 20
# An exception that pickles to more than this is reported by its text alone.
_MAX_EXCEPTION_BYTES = 1 << 20
# A 20 kB text reaches the driver whole through Spark's own error, on classic and on Connect.
_MAX_ENCODED_BYTES = 16_000

HANDSHAKE_SECONDS = 5.0

# Linux takes 253 with one message.
_FILES_AT_ONCE = 200


# A row's id: the number of its partition above these bits, its number in that below (Spark's
# monotonically_increasing_id).
ROW_BITS = 33


@dataclass(frozen=True)
class ShardArgument:
    """Stands among the pickled arguments for a DataFrame: the trainer puts its ``DataShard`` there."""

    name: str


@dataclass(frozen=True)
class FrameSpec:
    """What the workers are told of a DataFrame.

    Attributes:
        name: of the argument.
        columns: as it was taken apart.
        places: for each column its place in the stage's input, after the row's id and the frame's number.
        schema: Spark's, as ``StructType.jsonValue()``.
        expected_rows: how many there are in all, where Spark knows.
    """

    name: str
    columns: tuple[Column, ...]
    places: tuple[int, ...]
    schema: Mapping[str, Any]
    expected_rows: int | None = None


@dataclass(frozen=True)
class TaskSpec:
    """All that an agent has to know, the same for every rank.

    Attributes:
        attempt: 0 for the first launch; counts the restarts that ``max_restarts`` allows.
        world_size: number of Spark tasks, each with one worker.
        secret: key of the run, known to the driver and the agents alone.
        driver_addresses: ``(host, port)`` of the driver's channel, to be tried in this order.
        gone_means_dead: a driver that refuses connections is dead. So under Spark Connect, where the server goes on
            with a job whose client has died; classic Spark ends the task itself.
        payload: the pickled ``(train_fn, kwargs)`` or ``(script name, source, args)``.
        is_script: which of the two it is.
        gpus_by_rank: how many GPUs each rank takes of those that Spark dealt to its task; empty for CPU training.
        gpu_is_shared: several tasks share one GPU (``spark.task.resource.<name>.amount`` below 1).
        start_timeout: seconds until all workers have met.
        max_result_bytes: Spark's ``spark.driver.maxResultSize``; 0 for no limit.
        max_row_bytes: the largest result that may go through Spark's own rows, where the channel cannot take it:
            Spark holds several copies of it in the heap of the driver's JVM.
        warm_start: fork the trainer from a process that has imported TensorFlow already.
        warm_seconds: how long such a process is kept after its last use.
        submitted_at: when the driver submitted the job, seconds since the epoch.
        loopback: all workers run on the driver's own host (Spark's master is ``local``).
        echo: copy the trainer's output to the executor's stderr. Not where that is the driver's own, which shows the
            lines anyway.
        frames: the DataFrames among the function's arguments.
        seed: of the order of their rows, where the user gives none; the same for all attempts of a run.
    """

    attempt: int
    world_size: int
    secret: bytes
    driver_addresses: tuple[tuple[str, int], ...]
    gone_means_dead: bool
    payload: bytes
    is_script: bool
    use_gpu: bool
    gpu_resource_name: str
    gpus_by_rank: tuple[int, ...]
    gpu_is_shared: bool
    use_custom_strategy: bool
    env: Mapping[str, str]
    checkpoint_dir: str | None
    start_timeout: float
    max_result_bytes: int
    max_row_bytes: int
    warm_start: bool
    warm_seconds: float
    submitted_at: float
    loopback: bool
    echo: bool
    frames: tuple[FrameSpec, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class WorkerReport:
    """What an agent tells of its worker when it ends. Times are seconds, sizes bytes; ``rendezvous`` is the way it
    met its peers, ``channel`` or ``allGather``; ``rows`` are its share, by DataFrame, and ``spooled_bytes``
    what they took on disk."""

    rank: int
    host: str
    partition: int
    pid: int = 0
    devices: tuple[str, ...] = ()
    threads: int = 0
    tensorflow: str = ""
    rendezvous: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    spooled_bytes: int = 0
    exit: str = ""
    dropped_lines: int = 0
    log_tail: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "WorkerReport":
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name in ("devices", "log_tail", "warnings"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


def failure_record(
    rank: int,
    host: str,
    kind: str,
    message: str,
    *,
    error_type: str = "",
    traceback: str = "",
    pickled: str | None = None,
    log_tail: Sequence[str] = (),
) -> dict[str, Any]:
    """A worker's failure as a JSON object; ``pickled`` is what :func:`pickle_exception` made of its exception."""
    return {
        "rank": rank,
        "host": host,
        "kind": kind,
        "message": message,
        "error_type": error_type,
        "traceback": traceback,
        "pickled": pickled,
        "log_tail": list(log_tail),
    }


def pickle_exception(error: BaseException, dumps: Callable[[Any], bytes] = pickle.dumps) -> str | None:
    """Base64 of the exception, pickled by ``dumps``; None where it does not pickle, or is larger than 1 MiB."""
    try:
        blob = dumps(error)
    except Exception:  # any class may refuse to be pickled, in any way: then its text has to do
        return None
    return base64.b64encode(blob).decode() if len(blob) <= _MAX_EXCEPTION_BYTES else None


def failure_from_record(record: Mapping[str, Any], seconds: float = 0.0) -> WorkerFailure:
    """The failure that a record describes, with its exception where that can be rebuilt here.

    Only for records whose sender has shown the run's secret, or that came through Spark: it unpickles.
    """
    names = {f.name for f in fields(WorkerFailure)} - {"exception", "log_tail", "seconds"}
    error = None
    if record.get("pickled"):
        try:
            error = _ExceptionUnpickler(io.BytesIO(base64.b64decode(record["pickled"]))).load()
        except Exception:  # the class is missing here, or cannot be rebuilt: its text has to do
            error = None
    return WorkerFailure(
        **{name: record[name] for name in names if name in record},
        log_tail=tuple(record.get("log_tail") or ()),
        exception=error if isinstance(error, BaseException) else None,
        seconds=seconds,
    )


class _ExceptionUnpickler(pickle.Unpickler):
    """Rebuilds an exception, but does not import TensorFlow for it: a driver that has not done so itself cannot be
    waiting for one of TensorFlow's exceptions, and would pay seconds and half a gigabyte."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("tensorflow", "keras", "tf_keras") and module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not loaded here")
        return super().find_class(module, name)


def encode_failure(record: Mapping[str, Any]) -> str:
    """A text for a Spark task's own error, from which :func:`decode_failure` gets the record back.

    It is the only way to the driver where the driver's channel cannot be reached.
    """
    data = dict(record)
    for name, shorter in (("pickled", None), ("log_tail", []), ("traceback", data["traceback"][-4000:])):
        if len(json.dumps(data)) <= _MAX_ENCODED_BYTES:
            break
        data[name] = shorter
    data["message"] = data["message"][:4000]
    blob = base64.b64encode(json.dumps(data).encode()).decode()
    return f"rank {data['rank']} failed: {data['message'][:500]}\n{_MARK}{blob};"


def decode_failure(text: str) -> dict[str, Any] | None:
    """The failure record that a Spark error carries, or None."""
    start = text.find(_MARK)
    end = text.find(";", start)
    if start < 0 or end < 0:
        return None
    try:
        record: dict[str, Any] = json.loads(base64.b64decode(text[start + len(_MARK) : end]))
    except ValueError:
        return None
    return record


def chunks(data: memoryview) -> Iterator[memoryview]:
    """Cut ``data`` into pieces of 1 MiB, the last one shorter; nothing for empty data."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def frame(message: Mapping[str, Any]) -> bytes:
    """One message, ready to be written to a socket."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Puts frames together from the pieces in which a socket delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Add what was read; yields every message that is complete by now.

        Raises:
            ValueError: the peer does not speak this protocol.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > _MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes is not one of ours")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            message = json.loads(bytes(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
            yield message


def receive(sock: socket.socket) -> dict[str, Any]:
    """Read exactly one frame from a blocking socket.

    Raises:
        EOFError: the peer closed the connection.
    """
    (size,) = _HEADER.unpack(_receive_exactly(sock, _HEADER.size))
    if size > _MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes is not one of ours")
    message: dict[str, Any] = json.loads(_receive_exactly(sock, size))
    return message


def receive_bytes(sock: socket.socket, size: int) -> Iterator[bytes]:
    """Read ``size`` bytes that follow a message, in pieces of up to 1 MiB.

    Raises:
        EOFError: the peer closed the connection before.
    """
    while size > 0:
        piece = _receive_exactly(sock, min(size, CHUNK_BYTES))
        size -= len(piece)
        yield piece


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("the connection was closed")
        data += piece
    return bytes(data)


def send_files(sock: socket.socket, message: Mapping[str, Any], files: Sequence[BinaryIO]) -> None:
    """Send a short message and open files over a local socket; ``receive_files`` is the other end."""
    sock.sendall(frame({**message, "files": len(files)}))
    for start in range(0, len(files), _FILES_AT_ONCE):
        socket.send_fds(sock, [b"F"], [file.fileno() for file in files[start : start + _FILES_AT_ONCE]])


def receive_files(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, with the descriptors of its files.

    Raises:
        EOFError: the peer closed the connection.
    """
    message = receive(sock)
    descriptors: list[int] = []
    while len(descriptors) < message.get("files", 0):
        mark, received, _, _ = socket.recv_fds(sock, 1, _FILES_AT_ONCE)
        if not mark:
            raise EOFError("the connection was closed")
        descriptors += received
    return message, descriptors


def prove_to_driver(sock: socket.socket, secret: bytes) -> None:
    """The agent's half of the handshake: both show that they hold the secret, and neither sends it.

    A challenge and response over HMAC-SHA256 in both directions; the role is part of what is signed, so that an
    answer cannot be sent back to the one who asked.

    Raises:
        RendezvousError: the other side does not hold the secret.
    """
    challenge = _receive_exactly(sock, 32)
    own = secrets.token_bytes(32)
    sock.sendall(_sign(secret, b"agent", challenge) + own)
    if not hmac.compare_digest(_receive_exactly(sock, 32), _sign(secret, b"driver", own)):
        raise RendezvousError("The process at the driver's address does not hold this run's secret.")


def prove_to_agent(sock: socket.socket, secret: bytes) -> bool:
    """The driver's half of the handshake; False where the caller does not hold the secret."""
    challenge = secrets.token_bytes(32)
    sock.sendall(challenge)
    answer = _receive_exactly(sock, 64)
    if not hmac.compare_digest(answer[:32], _sign(secret, b"agent", challenge)):
        return False
    sock.sendall(_sign(secret, b"driver", answer[32:]))
    return True


def _sign(secret: bytes, role: bytes, challenge: bytes) -> bytes:
    return hmac.new(secret, role + challenge, hashlib.sha256).digest()


def tensorflow_version() -> str:
    """The installed TensorFlow's version, without importing it; "" where there is none."""
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tf-nightly-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
