"""The trainer: from a launch request to an outcome.

It runs in a process of its own, freshly forked. It is given a :class:`TrainerSpec` and open files, and gives back
messages on ``control``, the pickled value in the file ``result``, and its exit status.
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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from ...context import set_context
from ...data.layout import ShardLayout
from ...errors import SerializationError
from ...formatting import mebibytes, one_line, type_name
from ...training.autograph_files import keep_no_generated_files
from ...training.ports import PortTakenError, wait_for_leader
from .. import barrier
from ..failures import Failure
from ..specs import SILENT_SECONDS, TrainerSpec
from ..wire import frame, receive, receive_files

if TYPE_CHECKING:
    from ...resume.fit_tracker import FitTracker  # imports TensorFlow

_PICKLE_HINT = "Return plain data (numbers, arrays, dicts of them) or save the object to storage inside the function."


def run_trainer(spec: TrainerSpec, fds: Mapping[str, int]) -> int:
    """Become the trainer that ``spec`` describes, and train; returns the exit status."""
    _take_over(spec, fds)
    control = Control(socket.socket(fileno=fds["control"]))
    # The agent sends this signal to get the stacks of all threads when training has stalled.
    faulthandler.register(signal.SIGUSR2, fds["stacks"], all_threads=True)
    trainer = Trainer(spec, fds, control)
    outcome = trainer.train()
    _flush()
    control.send({"type": "outcome", **outcome})
    # This process is one end of the group's connections: if it exited now, its peers would fail in what they still
    # have to do.
    if control.wait_for_release():
        trainer.finish()
    # Run the exit handlers that the function has registered, as any other process would.
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    return 1 if "failure" in outcome else 0


class Control:
    """The trainer's connection to its agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()  # Keras may report progress from another thread
        sock.setblocking(True)

    def send(self, message: dict[str, Any]) -> None:
        # If the agent is gone, this process is about to be killed, and nobody is left to receive the message.
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(frame(message))

    def phase(self, name: str) -> None:
        """Report that a phase begins."""
        self.send({"type": "phase", "name": name, "time": time.time()})

    def wait_for_data(self) -> tuple[list[ShardLayout], list[int]]:
        """Wait for this worker's rows; returns their layouts, and the descriptors of their files."""
        self.phase("data")
        while True:
            message, (plan, *files) = receive_files(self._socket)
            if message["type"] == "data":
                with os.fdopen(plan, "rb") as file:
                    file.seek(0)
                    return [ShardLayout.from_json(each) for each in json.load(file)], files

    def wait_for_release(self) -> bool:
        """Wait until all workers have returned; False if the agent is gone."""
        with contextlib.suppress(OSError, EOFError):
            return bool(receive(self._socket))
        return False

    def send_file(self, message: dict[str, Any], file: BinaryIO) -> None:
        """Send a message with an open file."""
        with contextlib.suppress(OSError), self._lock:
            socket.send_fds(self._socket, [frame({**message, "files": 1})], [file.fileno()])


def _take_over(spec: TrainerSpec, fds: Mapping[str, int]) -> None:
    """Make this process, a fork of the fork server, look like one that was started for the purpose."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fds["stdout"], 1)
    os.dup2(fds["stderr"], 2)
    for fd in (null, fds["stdout"], fds["stderr"]):
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        # Lines must leave as they are printed, and no print may fail because of the server's locale.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(spec.env)
    sys.path[:] = spec.path
    sys.argv[:] = spec.argv
    with contextlib.suppress(OSError):  # Spark may have removed the working directory of another task
        os.chdir(spec.cwd)
    tempfile.tempdir = None  # read this environment's TMPDIR again
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()
    _reseed()


def _reseed() -> None:
    """Reseed the generators: all forks of one image would otherwise draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


class Trainer:
    """Calls the user's function on this worker.

    Args:
        spec: What to run, and where this worker stands in the group.
        fds: Descriptors by name, see ``forkserver.FD_NAMES``; the driver's checkpoints under their own names.
        control: The connection to the agent.
    """

    def __init__(self, spec: TrainerSpec, fds: Mapping[str, int], control: Control) -> None:
        self._spec, self._fds, self._control = spec, fds, control
        self._tracker: FitTracker | None = None

    def train(self) -> dict[str, Any]:
        """Train; returns the outcome: ``size`` of the pickled value on the chief, or a ``failure``."""
        try:
            call = self._prepare()
        except PortTakenError as error:
            return self._failed("port", error, str(error))
        except Exception as error:
            return self._failed("startup", error)
        self._control.phase("train")
        try:
            value = call()
        except SystemExit as error:
            if error.code not in (None, 0):
                return self._failed("exit", error, f"The function called sys.exit({error.code!r}).")
            value = None
        except BaseException as error:  # KeyboardInterrupt and the like fail the worker, too
            return self._failed("exception", error, one_line(error))
        self._control.phase("result")
        if self._tracker is not None:
            self._tracker.flush()
        if not self._spec.context.is_chief:
            _read_along(value)
            return {}
        return self._write_result(value)

    def finish(self) -> None:
        """Mark the run as finished: all workers have returned."""
        if self._tracker is not None:
            self._tracker.finish()

    def _prepare(self) -> Callable[[], Any]:
        """Set up TensorFlow, Keras, the strategy and the data; returns the user's call."""
        spec, control = self._spec, self._control
        control.phase("import")
        from ...training.strategy import configure, multi_worker_strategy, stay_in_scope  # imports TensorFlow

        keep_no_generated_files()
        barrier.carry_in(spec.barrier)
        shared = spec.settings.gpu_is_shared
        for warning in configure(threads=spec.threads, gpus=spec.gpus, gpu_is_shared=shared):
            control.send({"type": "warning", "text": warning})
        set_context(spec.context)
        self._prepare_keras()
        self._track_fits()
        control.phase("strategy")
        os.close(self._fds["port"])
        if not spec.settings.use_custom_strategy:
            wait_for_leader(json.loads(os.environ["TF_CONFIG"]))
            stay_in_scope(multi_worker_strategy(silent_seconds=SILENT_SECONDS, gpu_is_shared=shared))
        return self._load_program(self._shards() if spec.has_data else {})

    def _track_fits(self) -> None:
        from ...resume.fit_tracker import track_fits

        spec = self._spec
        files = {name: self._fds[name] for name in spec.checkpoint_names}
        self._tracker = track_fits(spec.settings.checkpoints, files, spec.context, self._control)

    def _prepare_keras(self) -> None:
        import tensorflow as tf

        from ...training import keras_api, patches, progress, shard_feeding
        from ...training.private_names import missing_names_warning

        spec, control = self._spec, self._control
        if spec.context.world_size > 1:
            keras = keras_api.keras_for_workers()
            warning = missing_names_warning([tf] if keras is None else [tf, keras])
            if warning is not None:
                control.send({"type": "warning", "text": warning})
            patches.patch_tensorflow(spec.settings.seed)
            patched = patches.apply_patches()
            if patched:
                control.send({"type": "patched", "names": patched})
            if spec.has_data:
                shard_feeding.feed_shards()
        keras_api.quiet_auto_verbose(spec.context.is_chief)
        if spec.context.is_chief:
            progress.report_fit_progress(lambda message: control.send({"type": "progress", **message}))

    def _shards(self) -> dict[str, Any]:
        from ...data.shard import ShardId, open_shards

        layouts, files = self._control.wait_for_data()
        context = self._spec.context
        shard_id = ShardId(context.rank, context.world_size, self._spec.partition, self._spec.settings.seed)
        return dict(open_shards(layouts, files, shard_id))

    def _load_program(self, data: Mapping[str, Any]) -> Callable[[], Any]:
        """Load the user's function with its arguments, or the script, ready to be called."""
        from pyspark import cloudpickle

        with os.fdopen(self._fds["payload"], "rb") as file:
            file.seek(0)
            if self._spec.settings.is_script:
                from .user_script import script_call

                name, source, args = cloudpickle.load(file)
                return script_call(name, source, args)
            function, kwargs = cloudpickle.load(file)
        kwargs.update(data)
        return lambda: function(**kwargs)

    def _write_result(self, value: Any) -> dict[str, Any]:
        from pyspark import cloudpickle

        limit = self._spec.settings.max_result_bytes
        with os.fdopen(self._fds["result"], "wb", closefd=False) as file:
            try:
                cloudpickle.dump(value, file)
                file.flush()
            except OSError as error:
                return self._unsendable(
                    f"The returned value could not be written to the executor's local directory: {error}. "
                    "Free space there, or point spark.local.dir to a larger disk."
                )
            except BaseException as error:
                return self._unsendable(
                    f"The function returned a {type_name(value)}, which cannot be pickled: {one_line(error)}. "
                    f"{_PICKLE_HINT}"
                )
            size = file.tell()
        if limit and size > limit:
            return self._unsendable(
                f"The function returned a value of {mebibytes(size)} (pickled), but "
                f"spark.driver.maxResultSize is {mebibytes(limit)}. Raise that setting, with spark.driver.memory "
                "at several times the size, or save the value to storage inside the function and return its path."
            )
        return {"size": size}

    def _unsendable(self, message: str) -> dict[str, Any]:
        return self._failed("result", SerializationError(message), message, with_traceback=False)

    def _failed(self, kind: str, error: BaseException, message: str | None = None, **details: Any) -> dict[str, Any]:
        # Pickled by value, so that exception classes defined beside the user's function are the same class again at
        # the driver.
        from pyspark.cloudpickle import dumps

        tracker = self._tracker if kind in ("exception", "exit") else None
        failure = Failure.from_exception(
            self._spec.context.rank,
            self._spec.host,
            kind,
            error,
            message=message,
            dumps=dumps,
            place=(tracker and tracker.position) or {},
            **details,
        )
        return {"failure": failure.to_json()}


def _read_along(value: Any) -> None:
    """Pickle what this rank returned, and discard it.

    When the chief pickles a model, it reads variables that are synchronised only on reading (BatchNorm's moving
    statistics, metrics). Such a read is a collective: every rank must take part, or the chief waits for ever.
    TensorFlow asks the same of programs that save a model under this strategy.
    """
    from pyspark import cloudpickle

    if value is None:
        return
    with open(os.devnull, "wb") as nowhere, contextlib.suppress(Exception):  # the chief's error is the one to report
        cloudpickle.dump(value, nowhere)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
