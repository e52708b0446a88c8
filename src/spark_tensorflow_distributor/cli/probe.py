"""Collects facts about an executor, in a barrier task that runs on it. TensorFlow is imported in a separate process."""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from ..formatting import one_line
from ..resume.memory import available_memory
from ..runtime.agent.addresses import announced_host
from ..runtime.agent.environment import host_cores, local_directory
from ..runtime.agent.listeners import hold_port
from ..runtime.devices import DEFAULT_ENV, visible_devices
from ..runtime.shipping import library_sources
from ..training.keras_api import selected_keras
from ..transport.sealing import can_encrypt

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import BarrierTaskContext

PACKAGES = ("pyspark", "pyarrow", "pandas", "numpy", "tensorflow", "keras", "tf_keras", "cryptography")
SCHEMA = "rank int, facts string"
# Try to connect to only this many peers: more would reveal nothing new.
_MAX_PEERS = 32
_CONNECT_SECONDS = 5.0


def probe_task(spec: str, batches: Iterator["pa.RecordBatch"]) -> Iterator["pa.RecordBatch"]:
    """Yield one row of ``SCHEMA`` with the facts about this task, as JSON.

    Args:
        spec: JSON: ``driver`` (addresses of the driver's listener), ``env``, ``gpus`` (by rank; empty for CPUs),
            ``gpu_resource_name``, ``network``, ``ports`` (the first, and the last plus one; empty for any),
            ``loopback`` and ``import_seconds`` (the limit for the import of TensorFlow).
        batches: The placeholder rows of the job.
    """
    import pyarrow as pa
    from pyspark import BarrierTaskContext

    for _ in batches:
        pass
    context = BarrierTaskContext.get()
    facts = json.dumps(_probe(json.loads(spec), context))
    columns = [pa.array([context.partitionId()], pa.int32()), pa.array([facts], pa.string())]
    yield pa.RecordBatch.from_arrays(columns, names=["rank", "facts"])


def _probe(spec: Mapping[str, Any], context: "BarrierTaskContext") -> dict[str, Any]:
    rank = context.partitionId()
    hosts = [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
    facts = {"rank": rank, "host": hosts[rank], **host_facts(), "driver": any(_connectable(spec["driver"]))}
    resources = {name: list(info.addresses) for name, info in context.resources().items()}
    facts["resources"], facts["cpus"] = resources, context.cpus()
    addresses, problem = [], ""
    listener = None
    try:
        host = announced_host(hosts[rank], spec["network"], loopback=spec["loopback"])
        listener = hold_port(range(*spec["ports"]) if spec["ports"] else None, host, listens=True)
        addresses = [host.strip("[]"), listener.getsockname()[1]]
    except Exception as error:  # reported, because the other tasks must not wait for this one
        problem = one_line(error, with_module=False)
    try:
        members = [json.loads(each) for each in context.allGather(json.dumps(addresses))]
        facts["listener"] = problem
        facts["unreachable"] = _unreachable(rank, members)
        if hosts.index(hosts[rank]) == rank:  # once per host
            facts["tensorflow"] = _tensorflow(spec, rank, resources)
        context.barrier()  # keep listening until all tasks have tried to connect
        facts["time"] = time.time()
    finally:
        if listener is not None:
            listener.close()
    return facts


def host_facts() -> dict[str, Any]:
    """Return facts about this process's interpreter and host."""
    folder = local_directory()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": package_versions(),
        "can_encrypt": can_encrypt(),
        "cores": host_cores(),
        "memory": available_memory(),
        "disk": {"path": folder, "free": shutil.disk_usage(folder).free},
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that a run uses; TensorFlow may be installed as tensorflow-cpu."""
    found = {}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cpu") if name == "tensorflow" else (name,):
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _connectable(addresses: Sequence[Sequence[Any]]) -> list[bool]:
    """Return for each address whether this process can connect to it. Takes at most ``_CONNECT_SECONDS``."""
    if not addresses:
        return []
    pool = ThreadPoolExecutor(len(addresses), "spark-tensorflow-probe")
    tries = [pool.submit(_connects, host, port) for host, port in addresses]
    wait(tries, _CONNECT_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    return [each.done() and each.result() for each in tries]


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _unreachable(rank: int, members: Sequence[Sequence[Any]]) -> list[str]:
    """Return the listeners of other tasks to which this one cannot connect.

    Every task begins with its right neighbour, so that in a large group, too, each listener is tried by some tasks.
    """
    others = [members[(rank + step) % len(members)] for step in range(1, len(members))]
    tried = [each for each in others[:_MAX_PEERS] if each]
    return [f"{each[0]}:{each[1]}" for each, works in zip(tried, _connectable(tried), strict=True) if not works]


def _tensorflow(spec: Mapping[str, Any], rank: int, resources: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Import TensorFlow in a new process, with the task's GPUs."""
    env = {**os.environ, **DEFAULT_ENV, "TF_CPP_MIN_LOG_LEVEL": "2", **spec["env"]}
    path = [*spec["env"].get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    env["PYTHONPATH"] = os.pathsep.join(each for each in path if each)
    try:
        gpus = visible_devices(
            resources.get(spec["gpu_resource_name"], []),
            spec["gpus"][rank] if spec["gpus"] else 0,
            os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        command = [sys.executable, "-c", library_sources()["cli/tensorflow_probe.py"]]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=spec["import_seconds"])
        if done.returncode == 0:
            # A run's workers have this environment, too: the host's, and the run's own variables.
            return {**json.loads(done.stdout.splitlines()[-1]), "selected_keras": selected_keras(env)}
    except subprocess.TimeoutExpired:
        return {"error": f"The import has not ended after {spec['import_seconds']:g} s. Pass a longer --timeout."}
    except Exception as error:  # reported
        return {"error": one_line(error, with_module=False)}
    return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
