"""Derives from the facts about a cluster whether a run would start. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..config import RunnerConfig
from ..formatting import gibibytes
from ..runtime.process_tools import INSTALL_IT
from ..runtime.spark_settings import PROTECTION, WORKER_PORTS
from ..runtime.specs import RunPlan
from ..training.keras_api import LEAST_KERAS, major_and_minor

# With less than this, training fails for all but the smallest models.
_LEAST_MEMORY = 1 << 30
_LEAST_DISK = 1 << 30
_LEAST_TENSORFLOW = (2, 16)
# Allows for the seconds that a task's last facts take to arrive.
_MAX_CLOCK_DIFFERENCE = 15.0


@dataclass(frozen=True)
class Finding:
    """A sentence about the cluster.

    Attributes:
        status: ``problem`` if a run would not start, ``warning`` if it would start with limitations, else ``ok``.
        text: What was found.
        change: What to change; empty if nothing needs to change.
    """

    status: Literal["ok", "warning", "problem"]
    text: str
    change: str = ""


def findings_of(
    config: RunnerConfig,
    run_plan: RunPlan,
    tasks: Sequence[Mapping[str, Any]],
    driver: Mapping[str, Any],
    now: float,
) -> list[Finding]:
    """Return the findings that follow from the facts of all tasks.

    Args:
        config: The arguments of the run.
        run_plan: The plan of the run.
        tasks: The facts that each ``probe.probe_task`` reported, by rank.
        driver: The driver's ``probe.host_facts``.
        now: The driver's clock when the tasks' facts arrived.
    """
    hosts = {task["host"]: task for task in reversed(tasks)}
    return [
        *_packages(hosts, driver),
        *_gpus(config, run_plan, tasks, hosts),
        *_network(run_plan, tasks),
        *_room(hosts, now),
    ]


def _packages(hosts: Mapping[str, Mapping[str, Any]], driver: Mapping[str, Any]) -> Iterator[Finding]:
    versions: dict[str, list[str]] = {}
    for host, task in hosts.items():
        found = task.get("tensorflow", {})
        if "error" in found:
            yield Finding("problem", f"TensorFlow cannot be imported on {host}: {found['error']}", INSTALL_IT)
            continue
        versions.setdefault(found["version"], []).append(host)
        if major_and_minor(found["version"]) < _LEAST_TENSORFLOW:
            yield Finding("problem", f"{host} has TensorFlow {found['version']}.", "Install TensorFlow 2.16 or newer.")
        uses_tf_keras = found["selected_keras"] == "tf_keras"
        if not uses_tf_keras and major_and_minor(found["keras"]) < major_and_minor(LEAST_KERAS):
            yield Finding(
                "problem",
                f"{host} has Keras {found['keras']}.",
                f"Install keras>={LEAST_KERAS}, or select tf_keras with --env TF_USE_LEGACY_KERAS=1.",
            )
        if uses_tf_keras and "tf_keras" not in task["packages"]:
            yield Finding("problem", f"TF_USE_LEGACY_KERAS selects tf_keras, but {host} has no tf_keras.", INSTALL_IT)
    if len({major_and_minor(version) for version in versions}) > 1:
        places = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(versions.items()))
        yield Finding("problem", f"The executors have different versions of TensorFlow: {places}.", "Use one version.")
    elif versions:
        yield Finding("ok", f"TensorFlow {', '.join(sorted(versions))} can be imported on {len(hosts)} host(s).")
    own = driver["packages"].get("tensorflow")
    if own is not None and versions and major_and_minor(own) not in {major_and_minor(version) for version in versions}:
        yield Finding("warning", f"The driver has TensorFlow {own}: a returned model may not load here.")
    elif own is None:
        yield Finding("warning", "The driver has no TensorFlow: it cannot load a model that the function returns.")


def _gpus(
    config: RunnerConfig, run_plan: RunPlan, tasks: Sequence[Mapping[str, Any]], hosts: Mapping[str, Mapping[str, Any]]
) -> Iterator[Finding]:
    if not config.use_gpu:
        idle = [host for host, task in hosts.items() if config.gpu_resource_name in task["resources"]]
        if idle:
            yield Finding("warning", f"GPUs of {', '.join(idle)} would not be used.", "Run without --cpu to use them.")
        return
    is_complete = True
    for task in tasks:
        wanted, given = run_plan.gpus_by_rank[task["rank"]], task["resources"].get(config.gpu_resource_name, [])
        if len(given) < wanted:
            is_complete = False
            yield Finding(
                "problem", f"Spark gave rank {task['rank']} on {task['host']} the GPUs {given}, not {wanted}."
            )
        seen = task.get("tensorflow", {}).get("gpus")
        if seen is not None and len(seen) < min(wanted, len(given)):
            is_complete = False
            cuda = task["tensorflow"]["cuda"]
            built = f"its TensorFlow is built for CUDA {cuda}" if cuda else "its TensorFlow is built without CUDA"
            yield Finding(
                "problem",
                f"TensorFlow on {task['host']} sees {len(seen)} of the {len(given)} GPUs that Spark assigned; {built}.",
                "Install tensorflow[and-cuda] there, and look at the driver with nvidia-smi.",
            )
    if is_complete:
        yield Finding(
            "ok", f"Spark assigns {sum(run_plan.gpus_by_rank)} GPUs to {len(tasks)} tasks, and TensorFlow sees them."
        )


def _network(run_plan: RunPlan, tasks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for task in tasks:
        if task["listener"]:
            yield Finding("problem", f"Rank {task['rank']} on {task['host']} cannot listen: {task['listener']}")
    cut = {task["host"]: task["unreachable"] for task in tasks if task["unreachable"]}
    for host, others in cut.items():
        yield Finding(
            "problem",
            f"{host} cannot connect to workers at {', '.join(others[:4])}{' ...' if len(others) > 4 else ''}.",
            f"Open the ports between the executors, or limit them with {WORKER_PORTS}=20000-20099. If the hosts have "
            "several networks, choose one with tensorflow.spark.distributor.workerNetwork.",
        )
    if len(tasks) > 1 and not cut and not any(task["listener"] for task in tasks):
        yield Finding("ok", f"The {len(tasks)} workers can connect to each other.")
    lost = sorted({task["host"] for task in tasks if not task["driver"]})
    if lost:
        yield Finding(
            "warning",
            f"The driver cannot be reached from {', '.join(lost)}: starts are slower, and their output is not shown.",
            "Open the port that tensorflow.spark.distributor.driverPort sets, and set spark.driver.host to an address "
            "that the executors reach.",
        )
    else:
        yield Finding("ok", "All executors can connect to the driver.")
    if run_plan.protection == "privacy":
        bare = sorted({task["host"] for task in tasks if not task["can_encrypt"]})
        if bare:
            yield Finding(
                "problem",
                f"Traffic must be encrypted ({PROTECTION}), but {', '.join(bare)} lacks the package cryptography.",
                "Install 'cryptography>=44' on the executors.",
            )


def _room(hosts: Mapping[str, Mapping[str, Any]], now: float) -> Iterator[Finding]:
    for host, task in hosts.items():
        if task["memory"] is not None and task["memory"] < _LEAST_MEMORY:
            yield Finding(
                "warning",
                f"{host} has {gibibytes(task['memory'])} of memory left; TensorFlow alone needs 0.6 GiB.",
                "Increase spark.executor.memoryOverhead, or run fewer workers per host.",
            )
        if task["disk"]["free"] < _LEAST_DISK:
            yield Finding(
                "warning",
                f"{host} has {gibibytes(task['disk']['free'])} left in {task['disk']['path']}, where rows are kept.",
                "Free space, or point spark.local.dir to a larger disk.",
            )
        if not task["system"].startswith("Linux"):
            yield Finding("warning", f"{host} runs {task['system']}: starts are slower than on Linux.")
        if abs(task["time"] - now) > _MAX_CLOCK_DIFFERENCE:
            yield Finding("warning", f"The clock of {host} differs from the driver's: traces will be shifted.")
