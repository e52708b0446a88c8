"""The trainer, from its launch to its outcome.

It runs in its own, freshly forked process. It receives a :class:`TrainerSpec` and open files, and returns messages on
``control``, the pickled value in the file ``result``, and its exit status.
"""

import atexit
import contextlib
import faulthandler
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...context import set_context, set_custom_loop
from ...errors import SerializationError
from ...formatting import mebibytes, one_line, sentence
from ...process_group.connection import PeerLostError
from ...training.autograph_files import keep_no_generated_files
from ...training.port_filter import filter_port
from ...training.ports import PortTakenError, tf_config, wait_for_leader
from ...training.step_times import step_times
from .. import barrier, spark_objects
from ..failures import Failure
from ..process_tools import paused_garbage_collection
from ..specs import SILENT_SECONDS, TrainerSpec
from .children import reset_signals_in_children
from .control import Control
from .custom_loop import CustomLoop
from .mlflow_autolog import record_once
from .result import UnsendableResultError, pickle_and_discard, write_result
from .sources import keep_sources
from .user_line import user_line, user_stack

if TYPE_CHECKING:
    import tensorflow as tf

    from ...process_group.group import ProcessGroup
    from ...resume.fit_tracker import FitTracker  # imports TensorFlow
    from ...training.fit_hooks import Hook

# Size limit of the accumulators' values, because they travel inside a message.
_MAX_ACCUMULATED = 16 << 20


def run_trainer(spec: TrainerSpec, fds: Mapping[str, int]) -> int:
    """Become the trainer that ``spec`` describes, and train; return the exit status."""
    _take_over(spec, fds)
    control = Control(socket.socket(fileno=fds["control"]), waits_for_callbacks=spec.settings.has_callbacks)
    # The agent sends this signal to get the stacks of all threads when training has stalled.
    faulthandler.register(signal.SIGUSR2, fds["stacks"], all_threads=True)
    trainer = Trainer(spec, fds, control)
    outcome = trainer.train()
    _flush()
    control.send({"type": "outcome", **outcome, **step_times.to_json()})
    # This process is one end of the group's connections: if it exited now, its peers would fail in their
    # remaining steps.
    if control.wait_for_release():
        trainer.finish()
    # Run the exit handlers that the function has registered, as any other process would.
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    return 1 if "failure" in outcome else 0


def _take_over(spec: TrainerSpec, fds: Mapping[str, int]) -> None:
    """Make this process, a fork of the fork server, look like one that was started for this trainer."""
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
    reset_signals_in_children()
    _reseed()


def _reseed() -> None:
    """Reseed the random generators: otherwise, all forks of one image would draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


class Trainer:
    """Calls the user's function on this worker.

    Args:
        spec: What to run, and this worker's position in the group.
        fds: Descriptors by name, see ``forkserver.FD_NAMES``; the driver's checkpoints under their own names.
        control: The connection to the agent.
    """

    def __init__(self, spec: TrainerSpec, fds: Mapping[str, int], control: Control) -> None:
        self._spec, self._fds, self._control = spec, fds, control
        self._tracker: FitTracker | None = None
        self._group: ProcessGroup | None = None
        self._custom_loop = CustomLoop(spec.context, control)

    def train(self) -> dict[str, Any]:
        """Train; return the outcome: ``size`` of the pickled value on the chief, or a ``failure``."""
        outcome = self._train()
        self._custom_loop.flush()
        if self._group is not None:
            failure = outcome.get("failure")
            # From now on, no collective operation of the other workers can complete.
            self._group.leave(failure and {"kind": "failed", "text": failure["message"]})
        return outcome

    def _train(self) -> dict[str, Any]:
        try:
            call = self._prepare()
        except PortTakenError as error:
            return self._failed("port", error, str(error))
        except Exception as error:
            return self._failed("startup", error)
        self._control.phase("train")
        set_custom_loop(self._custom_loop)
        try:
            value = call()
        except SystemExit as error:
            if error.code not in (None, 0):
                return self._failed("exit", error, f"The function called sys.exit({error.code!r}).")
            value = None
        except BaseException as error:  # KeyboardInterrupt, for example, also fails the worker
            return self._exception(error)
        if self._tracker is not None:
            self._tracker.flush()
        self._control.phase("result")
        outcome = self._accumulated()
        if "failure" in outcome:
            return outcome
        if not self._spec.context.is_chief:
            pickle_and_discard(value)
            return outcome
        return outcome | self._write_result(value)

    def finish(self) -> None:
        """Mark the run as finished: all workers have returned."""
        if self._tracker is not None:
            self._tracker.finish()

    def _prepare(self) -> Callable[[], Any]:
        """Set up TensorFlow, Keras, the strategy and the data; return the user's call."""
        spec, control = self._spec, self._control
        control.phase("import")
        with paused_garbage_collection():
            from ...training.other_strategies import hand_out  # imports TensorFlow
            from ...training.strategy import configure, stay_in_scope

        keep_no_generated_files()
        barrier.carry_in(spec.barrier, lambda name: self._control.in_barrier(name, user_line()))
        spark_objects.carry_in(spec.spark_objects)
        for warning in configure(threads=spec.threads, gpus=spec.gpus, gpu_is_shared=spec.settings.gpu_is_shared):
            control.warn(warning)
        set_context(spec.context)
        if spec.context.world_size > 1:
            record_once(spec.context.is_chief)
        self._prepare_keras()
        control.phase("strategy")
        strategy = self._strategy()
        if strategy is not None:
            hand_out(strategy, self._warn)
            stay_in_scope(strategy)
        return self._load_program(self._shards() if spec.has_data else {})

    def _warn(self, text: str) -> None:
        if self._spec.context.is_chief:
            self._control.warn(text)

    def _strategy(self) -> "tf.distribute.Strategy | None":
        """Connect to the other workers; return the common strategy, or None if the function makes its own."""
        from ...training.port_closing import close_port
        from ...training.strategy import announce_forming, mirrored_strategy, socket_strategy
        from ...training.tf_collectives import collectives_of

        spec = self._spec
        remote, local = (socket.socket(fileno=self._fds[name]) for name in ("port", "local"))
        if spec.settings.uses_sockets and spec.group is not None:
            from ...process_group.group import ProcessGroup

            self._group = ProcessGroup.form(spec.group, remote, local, spec.settings.start_timeout, user_line)
            self._group.observer, step_times.sees_collectives = step_times.add_collective, True
        remote.close()  # now TensorFlow may bind the port
        local.close()
        if spec.settings.uses_sockets:
            return socket_strategy(self._group, spec.settings.gradient_compression)
        filter_port(spec.peer_addresses, self._control.warn)
        if spec.settings.use_custom_strategy:
            announce_forming(self._control.forming)
            return None
        with self._control.forming():
            wait_for_leader(tf_config())
            strategy = mirrored_strategy(silent_seconds=SILENT_SECONDS, gpu_is_shared=spec.settings.gpu_is_shared)
            if spec.settings.closes_port and sys.platform.startswith("linux"):
                context = spec.context
                close_port(collectives_of(strategy, context.rank, context.world_size), self._control.warn)
            return strategy

    def _prepare_keras(self) -> None:
        import tensorflow as tf

        from ...training import keras_api, patches
        from ...training.fit_hooks import hook_methods
        from ...training.private_names import missing_names_warning

        spec, control = self._spec, self._control
        if spec.context.world_size > 1:
            keras = keras_api.keras_for_workers()
            warning = missing_names_warning([tf] if keras is None else [tf, keras])
            if warning is not None:
                control.warn(warning)
            patches.patch_tensorflow(spec.settings.seed)
            patched = patches.apply_patches()
            if patched:
                control.send({"type": "patched", "names": patched})
        hook_methods(keras_api.keras_packages(), self._method_hooks())

    def _method_hooks(self) -> "Iterator[Hook]":
        """Yield the hooks around fit, evaluate and predict, in the order in which they are entered."""
        from ...training import progress, replica_hooks, shard_feeding
        from ...training.fit_hooks import quiet_auto_verbose, quiet_shuffle
        from ...training.joint_calls import announce_calls

        spec, control = self._spec, self._control
        context = spec.context
        if context.world_size > 1:
            # First, because the later hooks exchange data.
            yield announce_calls(
                control.ask, control.leave, lambda: (user_line(), user_stack()), context.rank, context.world_size
            )
        yield shard_feeding.feed_shards
        # This hook changes the epoch that later hooks see, and saves after all other callbacks.
        yield self._fit_tracker().hook
        if spec.context.is_chief:
            yield progress.report_fit_progress(lambda message: control.send({"type": "progress", **message}))
        # Precedes the replica's hooks, because the verbosity decides whether the logs of steps are read.
        yield quiet_auto_verbose(spec.context.is_chief)
        yield quiet_shuffle
        yield from replica_hooks.HOOKS if context.world_size > 1 else (replica_hooks.as_one_process,)

    def _fit_tracker(self) -> "FitTracker":
        from ...resume.fit_tracker import track_fits

        spec = self._spec
        files = {name: self._fds[name] for name in spec.checkpoint_names}
        self._tracker = track_fits(spec.settings.checkpoints, files, spec.context, self._control)
        return self._tracker

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
            keep_sources(cloudpickle.load(file))
            if self._spec.settings.is_script:
                from .user_script import script_call

                name, source, args = cloudpickle.load(file)
                return script_call(name, source, args)
            function, kwargs = cloudpickle.load(file)
        kwargs.update(data)
        return lambda: function(**kwargs)

    def _accumulated(self) -> dict[str, Any]:
        """Return the part of the outcome that holds what the function has added to accumulators."""
        from pyspark import cloudpickle

        try:
            text = spark_objects.accumulated(cloudpickle.dumps)
        except Exception as error:
            return self._unsendable(f"The value of an accumulator cannot be pickled: {sentence(one_line(error))}")
        if len(text) > _MAX_ACCUMULATED:
            return self._unsendable(
                f"The function has added {mebibytes(len(text))} to accumulators; at most {mebibytes(_MAX_ACCUMULATED)} "
                "can be sent. Return large values, or save them to storage."
            )
        return {"accumulated": text}

    def _write_result(self, value: Any) -> dict[str, Any]:
        limit = self._spec.settings.max_result_bytes
        with os.fdopen(self._fds["result"], "w+b", closefd=False) as file:
            try:
                return {"size": write_result(value, file, limit)}
            except UnsendableResultError as error:
                return self._unsendable(str(error))

    def _unsendable(self, message: str) -> dict[str, Any]:
        return self._failed("result", SerializationError(message), message, with_traceback=False)

    def _exception(self, error: BaseException) -> dict[str, Any]:
        """Return the outcome of an exception in the training function, or of the group's error if that caused it."""
        broken = None if self._group is None or self._group.was_interrupted else self._group.error
        if broken is None:
            return self._failed("exception", error, one_line(error))
        # TensorFlow has wrapped the group's error in one of its own.
        broken.__cause__ = None if error is broken else error
        return self._failed("peer" if isinstance(broken, PeerLostError) else "exception", broken, str(broken))

    def _failed(self, kind: str, error: BaseException, message: str | None = None, **details: Any) -> dict[str, Any]:
        # Pickled by value, so that exception classes defined next to the user's function are the same class again on
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


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
