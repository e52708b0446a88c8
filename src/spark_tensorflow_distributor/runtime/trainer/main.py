"""The trainer: from a launch request to an outcome.

It runs in a process of its own, just forked. What it was given: the request (a dict), and descriptors. What it gives
back: messages on ``control``, the pickled value in the file ``result``, and its exit status.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from ...context import WorkerContext, set_context
from ...errors import SerializationError
from ...resume.interval import CheckpointInterval
from ...resume.settings import CheckpointSettings
from ...training.autograph_files import keep_no_generated_files
from ...training.ports import PortTakenError, wait_for_leader
from .. import barrier
from ..failures import pickle_exception
from ..specs import SILENT_SECONDS
from ..wire import frame, receive, receive_files

# What pyspark.cloudpickle and the standard library raise for an object that cannot be pickled.
_PICKLE_HINT = "Return plain data (numbers, arrays, dicts of them) or save the object to storage inside the function."


def run_trainer(request: dict[str, Any], fds: dict[str, int]) -> int:
    """Become the trainer that the request describes; returns the exit status."""
    _take_over(request, fds)
    control = Control(socket.socket(fileno=fds["control"]))
    # The agent asks for the stacks of all threads by this signal, when training stands still.
    faulthandler.register(signal.SIGUSR2, fds["stacks"], all_threads=True)
    # What is left to do when all workers have returned.
    on_release: list[Callable[[], None]] = []
    try:
        outcome = _train(request, fds, control, on_release)
    except PortTakenError as error:
        outcome = _failed("port", error, str(error))
    except _StartupError as error:
        cause = error.__cause__ or error
        outcome = _failed("startup", cause, str(error))
    _flush()
    control.send({"type": "outcome", **outcome})
    # This process is one end of the group's connections: if it went now, its peers would fail in what they still
    # have to do.
    if control.wait_for_release():
        for finish in on_release:
            finish()
    # Handlers that the function registered run as at any other exit; the image's own are not this process's affair.
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    return 0 if outcome["ok"] else 1


class _StartupError(Exception):
    """Something failed before the training function was called."""


class Control:
    """The trainer's connection to its agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()  # Keras may report progress from a thread of its own
        sock.setblocking(True)

    def send(self, message: dict[str, Any]) -> None:
        # An agent that is gone takes this process with it within moments; nobody is left to tell.
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(frame(message))

    def phase(self, name: str) -> None:
        """Tell the agent that the named phase begins."""
        self.send({"type": "phase", "name": name, "time": time.time()})

    def wait_for_data(self) -> tuple[dict[str, Any], list[int]]:
        """The layout of this worker's rows, and the files that it speaks of."""
        self.phase("data")
        while True:
            message, (plan, *files) = receive_files(self._socket)
            if message["type"] == "data":
                with os.fdopen(plan, "rb") as file:
                    file.seek(0)
                    return json.load(file), files

    def wait_for_release(self) -> bool:
        """Whether all workers have returned; False where the agent is gone."""
        with contextlib.suppress(OSError, EOFError):
            return bool(receive(self._socket))
        return False

    def send_file(self, message: dict[str, Any], file: BinaryIO) -> None:
        """Send a message with an open file."""
        with contextlib.suppress(OSError), self._lock:
            socket.send_fds(self._socket, [frame({**message, "files": 1})], [file.fileno()])


def _take_over(request: dict[str, Any], fds: dict[str, int]) -> None:
    """Make this process, a copy of the fork server, look like one that was started for the purpose."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fds["stdout"], 1)
    os.dup2(fds["stderr"], 2)
    for fd in (null, fds["stdout"], fds["stderr"]):
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        # Lines have to leave as they are printed; and no user's print may fail for the server's locale.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = request["path"]
    sys.argv[:] = request["argv"]
    with contextlib.suppress(OSError):  # Spark may have removed a working directory of another task
        os.chdir(request["cwd"])
    tempfile.tempdir = None  # look at this environment's TMPDIR again
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()
    _reseed()


def _reseed() -> None:
    """Every fork of one image would otherwise draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def checkpoint_settings(request: dict[str, Any], fds: dict[str, int]) -> CheckpointSettings:
    """Return the checkpoint settings of a launch request, with the files that came along."""
    wanted = request["checkpoints"]
    return CheckpointSettings(
        folder=wanted["folder"],
        at_driver=wanted["at_driver"],
        interval=CheckpointInterval(**wanted["interval"]),
        run_id=wanted["run"],
        expected=tuple(wanted["expected"]),
        files={name: fds[name] for name in wanted["names"]},
    )


def _train(
    request: dict[str, Any], fds: dict[str, int], control: Control, on_release: list[Callable[[], None]]
) -> dict[str, Any]:
    control.phase("import")
    try:
        from ...training import strategy  # imports TensorFlow

        keep_no_generated_files()
        barrier.carry_in(request["barrier"])
        for warning in strategy.configure(
            threads=request["threads"],
            gpus=request["gpus"],
            gpu_is_shared=request["gpu_is_shared"],
        ):
            control.send({"type": "warning", "text": warning})
        context = WorkerContext(**request["context"])
        set_context(context)
        _prepare_keras(context, control, request)
        from ...resume.fit_tracker import track_fits  # imports TensorFlow

        tracker = track_fits(checkpoint_settings(request, fds), context, control)
        on_release.append(tracker.finish)
        control.phase("strategy")
        os.close(fds["port"])
        if not request["use_custom_strategy"]:
            wait_for_leader(json.loads(os.environ["TF_CONFIG"]))
            is_shared = request["gpu_is_shared"]
            strategy.stay_in_scope(
                strategy.multi_worker_strategy(silent_seconds=SILENT_SECONDS, gpu_is_shared=is_shared)
            )
        data = control.wait_for_data() if request["has_data"] else ({}, [])
        call = _load_program(fds["payload"], request, _shards(request, *data))
    except PortTakenError:
        raise
    except Exception as error:
        raise _StartupError(_one_line(error)) from error
    control.phase("train")
    try:
        value = call()
    except SystemExit as error:
        if error.code not in (None, 0):
            return _failed("exit", error, f"The function called sys.exit({error.code!r}).", tracker.position)
        value = None
    except BaseException as error:  # KeyboardInterrupt and the like fail the worker too
        return _failed("exception", error, _one_line(error), tracker.position)
    control.phase("result")
    tracker.flush()
    if not context.is_chief:
        _read_along(value)
        return {"ok": True}
    return _write_result(value, fds["result"], request["max_result_bytes"])


def _read_along(value: Any) -> None:
    """Pickle what this rank returned, for nobody.

    Where the chief pickles a model, it reads variables that are kept in step only when they are read (BatchNorm's
    moving statistics, metrics), and such a read is a collective: all ranks have to take part, or the chief waits for
    ever. TensorFlow asks the same of who saves a model under this strategy.
    """
    from pyspark import cloudpickle

    if value is None:
        return
    with open(os.devnull, "wb") as nowhere, contextlib.suppress(Exception):  # the chief's error is the one to report
        cloudpickle.dump(value, nowhere)


def _prepare_keras(context: WorkerContext, control: Control, request: dict[str, Any]) -> None:
    import tensorflow as tf

    from ...training import keras_api, patches, progress, shard_feeding
    from ...training.private_names import missing_names_warning

    if context.world_size > 1:
        keras = keras_api.keras_for_workers()
        warning = missing_names_warning([tf] if keras is None else [tf, keras])
        if warning is not None:
            control.send({"type": "warning", "text": warning})
        patches.patch_tensorflow(request["seed"])
        patched = patches.apply_patches()
        if patched:
            control.send({"type": "patched", "names": patched})
        if request["has_data"]:
            shard_feeding.feed_shards()
    keras_api.quiet_auto_verbose(context.is_chief)
    if context.is_chief:
        progress.report_fit_progress(lambda message: control.send({"type": "progress", **message}))


def _shards(request: dict[str, Any], layout: dict[str, Any], files: list[int]) -> dict[str, Any]:
    if not layout:
        return {}
    from ...data.shard import ShardId, shards

    context = request["context"]
    place = ShardId(context["rank"], context["world_size"], request["partition"], request["seed"])
    return dict(shards(layout["frames"], files, place))


def _load_program(payload_fd: int, request: dict[str, Any], data: dict[str, Any]) -> Callable[[], Any]:
    """The user's function with its arguments, or her script, ready to be called."""
    from pyspark import cloudpickle

    with os.fdopen(payload_fd, "rb") as file:
        file.seek(0)
        if request["is_script"]:
            from .user_script import script_call

            name, source, args = cloudpickle.load(file)
            return script_call(name, source, args)
        function, kwargs = cloudpickle.load(file)
    kwargs.update(data)
    return lambda: function(**kwargs)


def _write_result(value: Any, result_fd: int, limit: int) -> dict[str, Any]:
    from pyspark import cloudpickle

    with os.fdopen(result_fd, "wb", closefd=False) as file:
        try:
            cloudpickle.dump(value, file)
            file.flush()
        except OSError as error:
            failure = SerializationError(
                f"The returned value could not be written to the executor's local directory: {error}. "
                "Free space there, or point spark.local.dir to a larger disk."
            )
            return _failed("result", failure, str(failure))
        except BaseException as error:
            failure = SerializationError(
                f"The function returned a {_type_name(value)}, which cannot be pickled: {_one_line(error)}. "
                f"{_PICKLE_HINT}"
            )
            return _failed("result", failure, str(failure))
        size = file.tell()
    if limit and size > limit:
        failure = SerializationError(
            f"The function returned a value of {size / 2**20:.1f} MiB (pickled), and the setting "
            f"spark.driver.maxResultSize is {limit / 2**20:.1f} MiB. Raise that setting, with spark.driver.memory at "
            "several times the size, or save the value to storage inside the function and return its path."
        )
        return _failed("result", failure, str(failure))
    return {"ok": True, "size": size}


def _failed(kind: str, error: BaseException, message: str, place: dict[str, int] | None = None) -> dict[str, Any]:
    # By value, so that the caller's own exception classes, defined beside her function, are the same class again at
    # the driver.
    from pyspark.cloudpickle import dumps

    return {
        "ok": False,
        "kind": kind,
        "message": message,
        "error_type": _type_name(error),
        "traceback": "".join(traceback.format_exception(error)) if kind != "result" else "",
        "pickled": pickle_exception(error, dumps),
        "place": place,
    }


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{_type_name(error)}: {text}" if text else _type_name(error)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
