"""Groups of plain processes on this machine: no Spark, only TF_CONFIG, Keras and the code under test.

As a program, it is one of those processes: ``python mwms.py REQUEST``, where REQUEST is a JSON object.
"""

import contextlib
import importlib
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PORT_TAKEN = "Could not start gRPC server"


class GroupFailed(AssertionError):
    """A process of the group failed or timed out; the message has the end of each process's output."""


def run_group(
    function: str,
    *,
    workers: int,
    timeout: float = 200,
    env: dict[str, str] | None = None,
    without: Sequence[str] = (),
    **arguments: Any,
) -> list[Any]:
    """Call ``function(strategy, **arguments)`` in each process of a new group, and return the results by rank.

    Args:
        function: ``"module:name"``; the module may be in the folder of this file.
        workers: number of processes; 1 means no group, and TensorFlow's default ``strategy``.
        timeout: seconds for the whole group, after which it is killed, as it is when one process fails.
        env: added to the environment.
        without: patches to leave out.
        arguments: serialisable as JSON.
    """
    for attempt in (1, 2, 3):
        try:
            return _run_once(function, workers, timeout, env or {}, {"without": list(without), "arguments": arguments})
        except GroupFailed as error:
            # Another program took the port after it was chosen.
            if attempt == 3 or _PORT_TAKEN not in str(error):
                raise
    raise AssertionError("not reached")


def _run_once(function: str, workers: int, timeout: float, env: dict[str, str], more: dict[str, Any]) -> list[Any]:
    ports = _free_ports(workers)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    with tempfile.TemporaryDirectory(prefix="mwms-") as directory, contextlib.ExitStack() as cleanup:
        processes = []
        for rank in range(workers):
            request = {
                "function": function,
                **more,
                "rank": rank,
                "workers": workers,
                "result": f"{directory}/{rank}.pickle",
            }
            environment = {
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "-1",
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
                **env,
            }
            environment.pop("TF_CONFIG", None)
            if workers > 1:
                task = {"type": "worker", "index": rank}
                environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
            output = cleanup.enter_context(open(f"{directory}/{rank}.log", "w+", errors="replace"))
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", __file__, json.dumps(request)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
            )
            cleanup.callback(_end, process)
            processes.append(process)
        _wait(processes, directory, timeout)
        return [pickle.loads(Path(directory, f"{rank}.pickle").read_bytes()) for rank in range(workers)]


def _wait(processes: list[subprocess.Popen[bytes]], directory: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        late = time.monotonic() > deadline
        if late or any(process.poll() for process in processes):
            break
        time.sleep(0.05)
    statuses = [process.poll() for process in processes]
    if any(status != 0 for status in statuses):
        for process in processes:
            _end(process)
        logs = [Path(directory, f"{rank}.log").read_text(errors="replace")[-6000:] for rank in range(len(processes))]
        text = "\n".join(
            f"---- rank {rank}, {'still running' if status is None else f'exit status {status}'}\n{log}"
            for rank, (status, log) in enumerate(zip(statuses, logs, strict=True))
        )
        raise GroupFailed(f"the group did not succeed within {timeout} s\n{text}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()  # TensorFlow swallows SIGTERM
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        held = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _main(request: dict[str, Any]) -> None:
    import tensorflow as tf

    from spark_tensorflow_distributor.training import keras_api, patches

    # Several processes share two cores: more threads would not help.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(4)
    patched = []
    if request["workers"] > 1:
        patches.patch_tensorflow()
        patched = patches.apply_patches(request["without"])
    keras_api.quiet_auto_verbose(is_chief=request["rank"] == 0)
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if request["workers"] > 1 else tf.distribute.get_strategy()
    module, _, name = request["function"].partition(":")
    value = getattr(importlib.import_module(module), name)(strategy, **request["arguments"])
    value["patched"] = patched
    Path(request["result"]).write_bytes(pickle.dumps(value))
    # TensorFlow's exit waits for threads of the collectives, and occasionally hangs.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
