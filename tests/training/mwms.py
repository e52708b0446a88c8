"""Groups of plain processes on this machine: no Spark, only TF_CONFIG, Keras and the code under test.

Run as a program, this module is the server that forks these processes, so that TensorFlow is imported once per
environment rather than once per process. It reads one JSON request per line from stdin, and ends when stdin closes.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_PORT_TAKEN = "Could not start gRPC server"


class GroupFailed(AssertionError):
    """A process of the group failed or timed out; the message shows the end of each process's output."""


def run_group(
    function: str,
    *,
    workers: int,
    timeout: float = 200,
    env: dict[str, str] | None = None,
    without: Sequence[str] = (),
    engine: str = "sockets",
    **arguments: Any,
) -> list[Any]:
    """Call ``function(strategy, **arguments)`` in each process of a new group, and return the results by rank.

    Args:
        function: ``"module:name"``; the module may be in the folder of this file.
        workers: Number of processes; 1 means no group, and TensorFlow's default ``strategy``.
        timeout: Seconds after which the whole group is killed, as also happens when one process fails.
        env: Environment variables to add.
        without: Names of patches to leave out.
        engine: How collectives travel: ``sockets``, ``tensorflow``, or ``mirrored`` for TensorFlow's own strategy, as
            on workers with several devices.
        arguments: The function's arguments, which must be serialisable as JSON.
    """
    request = {"function": function, "without": list(without), "engine": engine, "arguments": arguments}
    for attempt in (1, 2, 3):
        try:
            return _run_once(request, workers, timeout, env or {})
        except GroupFailed as error:
            # Another program took a port after it was chosen.
            if attempt == 3 or _PORT_TAKEN not in str(error):
                raise
    raise AssertionError("not reached")


def _run_once(what: dict[str, Any], workers: int, timeout: float, env: dict[str, str]) -> list[Any]:
    ports = _free_ports(workers)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    server = _fork_server(tuple(sorted(env.items())))
    with tempfile.TemporaryDirectory(prefix="mwms-") as directory, contextlib.ExitStack() as cleanup:
        processes = []
        for rank in range(workers):
            task = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
            config = {"TF_CONFIG": json.dumps(task)} if workers > 1 else {}
            request = {**what, "rank": rank, "workers": workers, "environment": config}
            processes.append(process := _Process(server, f"{directory}/{rank}", request))
            cleanup.callback(process.end)
        _wait(processes, directory, timeout)
        return [pickle.loads(Path(directory, f"{rank}.pickle").read_bytes()) for rank in range(workers)]


def _wait(processes: "list[_Process]", directory: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        late = time.monotonic() > deadline
        if late or any(process.poll() for process in processes):
            break
        time.sleep(0.02)
    statuses = [process.poll() for process in processes]
    if any(status != 0 for status in statuses):
        for process in processes:
            process.end()
        logs = [Path(directory, f"{rank}.log").read_text(errors="replace")[-6000:] for rank in range(len(processes))]
        text = "\n".join(
            f"---- rank {rank}, {'still running' if status is None else f'exit status {status}'}\n{log}"
            for rank, (status, log) in enumerate(zip(statuses, logs, strict=True))
        )
        raise GroupFailed(f"the group did not succeed within {timeout} s\n{text}")


class _Process:
    """A process that a server forks; its output, pid and exit status are in files named ``path`` plus a suffix."""

    def __init__(self, server: "subprocess.Popen[str]", path: str, request: dict[str, Any]) -> None:
        self._server, self._path = server, path
        Path(f"{path}.log").touch()
        assert server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the server has ended, which poll() reports
            server.stdin.write(json.dumps({**request, "path": path}) + "\n")
            server.stdin.flush()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process is running."""
        status = self._read("exit")
        if status is None and self._server.poll() is not None:
            return self._server.returncode or 1
        return status

    def end(self) -> None:
        while self.poll() is None:
            if (pid := self._read("pid")) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # TensorFlow swallows SIGTERM
            time.sleep(0.02)

    def _read(self, what: str) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):  # not written yet, or only in part
            return int(Path(f"{self._path}.{what}").read_text())
        return None


@functools.cache
def _fork_server(env: tuple[tuple[str, str], ...]) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        **dict(env),
    }
    environment.pop("TF_CONFIG", None)
    command = [sys.executable, "-X", "faulthandler", __file__]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)
    assert server.stdin is not None

    def close() -> None:
        with contextlib.suppress(BrokenPipeError):  # it has already failed
            server.stdin.close()
        server.wait()

    atexit.register(close)
    return server


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        held = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _serve() -> None:
    """Fork a process for each request; at the end of stdin, kill those that are still running."""
    import tensorflow as tf

    assert tf.keras.Model  # imports the Keras package that the environment selects
    gc.freeze()  # a collection in a process would otherwise copy every page of the server
    running: dict[int, str] = {}

    def reap(*_: object) -> None:
        # This handler may interrupt itself, so it does not wait for a specific pid.
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                path = running.pop(ended[0])
                with contextlib.suppress(FileNotFoundError):  # the group was abandoned
                    Path(f"{path}.exit").write_text(str(os.waitstatus_to_exitcode(ended[1])))

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        request = json.loads(line)
        # A process may end before it is recorded.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            _run_forked(request)
        running[pid] = request["path"]
        Path(f"{request['path']}.pid").write_text(str(pid))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for pid in list(running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _run_forked(request: dict[str, Any]) -> None:
    """Run a request in a forked process, and end the process."""
    status = 1
    try:
        output = os.open(f"{request['path']}.log", os.O_WRONLY | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(os.path.dirname(request["path"]))
        os.environ.update(request["environment"])
        random.seed()
        np.random.seed()
        _main(request)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # At exit, TensorFlow waits for the collectives' threads, and sometimes hangs.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _main(request: dict[str, Any]) -> None:
    import tensorflow as tf

    from spark_tensorflow_distributor.training import fit_hooks, keras_api, patches, replica_hooks

    # Several processes share two cores: more threads would not help.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(4)
    patched, hooks, current = [], [fit_hooks.quiet_auto_verbose(is_chief=request["rank"] == 0)], None
    if request["workers"] > 1:
        patches.patch_tensorflow()
        patched = patches.apply_patches(request["without"])
        hooks += replica_hooks.HOOKS
        current = _strategy(request["engine"], request["rank"])
    fit_hooks.hook_methods(keras_api.keras_packages(), hooks)
    module, _, name = request["function"].partition(":")
    value = getattr(importlib.import_module(module), name)(
        current or tf.distribute.get_strategy(), **request["arguments"]
    )
    value["patched"] = patched
    Path(f"{request['path']}.pickle").write_bytes(pickle.dumps(value))


def _strategy(engine: str, rank: int) -> Any:
    """Return the strategy of this process, which TF_CONFIG describes."""
    import tensorflow as tf

    from spark_tensorflow_distributor.process_group.group import ProcessGroup
    from spark_tensorflow_distributor.process_group.spec import GroupSpec, Member
    from spark_tensorflow_distributor.training import strategy

    if engine != "sockets":
        mirrored = tf.distribute.MultiWorkerMirroredStrategy()
        return mirrored if engine == "mirrored" else strategy.replica_of(mirrored)
    ports = [int(address.rpartition(":")[2]) for address in json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]]
    names = [b"\0mwms-%d" % port for port in ports]
    members = [Member("127.0.0.1", port, "here", name.hex()) for port, name in zip(ports, names, strict=True)]
    remote, local = socket.create_server(("127.0.0.1", ports[rank])), socket.socket(socket.AF_UNIX)
    local.bind(names[rank])
    local.listen()
    return strategy.socket_strategy(ProcessGroup.form(GroupSpec(rank, tuple(members), "00" * 32), remote, local, 60))


if __name__ == "__main__":
    _serve()
