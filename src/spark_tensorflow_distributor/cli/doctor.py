"""Check Spark, its executors, TensorFlow, GPUs, the network and settings, and say whether a run would start."""

import json
import socket
import time
from argparse import Namespace
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Any

import spark_tensorflow_distributor

from ..config import RunnerConfig
from ..errors import ClusterError, DistributorError
from ..formatting import one_line, printable, sentence
from ..runtime.driver import plan
from ..runtime.driver.job import SparkJob
from ..runtime.driver.outcome import brief
from ..runtime.driver.spark import SparkGateway
from ..runtime.shipping import shipped
from ..runtime.spark_settings import DRIVER_PORT
from ..runtime.specs import RunPlan
from .diagnosis import Diagnosis
from .doctor_text import report_text
from .findings import Finding, findings_of
from .options import naming_options, runner_arguments
from .probe import SCHEMA, host_facts
from .spark import session

_POLL_SECONDS = 0.25
_SECONDS_BESIDES_IMPORT = 30.0


def doctor(options: Namespace) -> int:
    """Print the diagnosis; return 0 if a run would start, else 1."""
    num_slots, given = options.num_slots, runner_arguments(options)
    with ExitStack() as cleanup:
        try:
            spark = cleanup.enter_context(session(options, num_slots or 2, is_quiet=True))
        except ClusterError as error:
            diagnosis = _without_session(options, error)
        else:
            gateway = SparkGateway(spark)
            if num_slots is None:
                num_slots = _slots(gateway)
            diagnosis = diagnose(RunnerConfig(**{**given, "num_slots": num_slots}), gateway, options.timeout)
    diagnosis.findings = [
        replace(each, text=naming_options(each.text), change=naming_options(each.change)) for each in diagnosis.findings
    ]
    print(json.dumps(diagnosis.to_dict(), indent=1) if options.json else printable(report_text(diagnosis)))
    return 0 if diagnosis.would_start else 1


def _without_session(options: Namespace, error: ClusterError) -> Diagnosis:
    """Return what can be said if Spark does not start."""
    facts = host_facts()
    spark = {"spark": facts["packages"].get("pyspark"), "java": None, "kind": "no session"}
    what = _run_text("all slots" if options.num_slots is None else f"num_slots={options.num_slots}", not options.cpu)
    return Diagnosis(spark_tensorflow_distributor.__version__, what, {**facts, **spark}, findings=[_problem(error)])


def _run_text(slots: str, use_gpu: bool) -> str:
    return f"{slots} on {'GPU' if use_gpu else 'CPU'}s"


def _slots(gateway: SparkGateway) -> int:
    """Return the number of slots that the cluster has now; used when ``--num-slots`` is omitted."""
    facts = gateway.facts(RunnerConfig(num_slots=1, use_gpu=False))
    return max(1, facts.slots or 1)


def diagnose(config: RunnerConfig, gateway: SparkGateway, timeout: float) -> Diagnosis:
    """Check whether a run would start; return the findings with the facts.

    Args:
        config: The run's arguments.
        gateway: The session.
        timeout: Seconds to wait for executors, and again for the tasks.
    """
    what = _run_text(f"num_slots={config.num_slots}", config.use_gpu)
    found = Diagnosis(spark_tensorflow_distributor.__version__, what, _driver_facts(gateway))
    try:
        facts = _wait_for_slots(config, gateway, timeout)
        found.settings = dict(sorted(facts.conf.items()))
        found.slots, found.executors = facts.slots, facts.executors
        gateway.check_interpreter(config.env)
        run_plan = plan.make_plan(config, facts)
    except DistributorError as error:
        found.findings.append(_problem(error))
        return found
    found.findings += [Finding("warning", text) for text in run_plan.warnings]
    shortage = plan.check_slots(config, facts, run_plan.num_tasks)
    tasks = run_plan.num_tasks
    if shortage is None:
        amount = "an unknown number of slots" if facts.slots is None else f"{facts.slots} slots"
        found.findings.append(Finding("ok", f"The run needs {tasks} Spark task(s); the cluster has {amount}."))
    else:
        found.findings.append(_problem(shortage))
        tasks = facts.slots or 0
    if tasks:
        _ask_executors(found, config, replace(run_plan, num_tasks=tasks), facts, gateway, timeout)
    return found


def _problem(error: Exception) -> Finding:
    return Finding("problem", one_line(error, with_module=False))


def _driver_facts(gateway: SparkGateway) -> dict[str, Any]:
    spark = gateway.spark
    return {
        **host_facts(),
        "spark": spark.version,
        "java": gateway.java_version(),
        "kind": "Spark Connect" if gateway.is_connect else "classic",
    }


def _wait_for_slots(config: RunnerConfig, gateway: SparkGateway, timeout: float) -> plan.ClusterFacts:
    """Return the cluster's facts once it has enough slots, can get no more executors, or ``timeout`` has passed."""
    end = time.monotonic() + timeout
    while True:
        facts = gateway.facts(config)
        tasks = plan.num_tasks_for(config, facts)
        if plan.check_slots(config, facts, tasks) is None or not facts.may_grow or time.monotonic() > end:
            return facts
        time.sleep(_POLL_SECONDS)


def _ask_executors(
    found: Diagnosis,
    config: RunnerConfig,
    run_plan: RunPlan,
    facts: plan.ClusterFacts,
    gateway: SparkGateway,
    timeout: float,
) -> None:
    """Start one barrier task per worker, and add the facts that they report and the findings."""
    bind, addresses = gateway.channel_address()
    port = run_plan.settings.driver_port
    try:
        listener = socket.create_server((bind, port), backlog=1024)
    except OSError as error:
        text = f"The driver cannot listen on {bind}:{port} for its workers: {sentence(error)}"
        found.findings.append(Finding("problem", text, f"Change spark.driver.bindAddress, or {DRIVER_PORT}."))
        return
    with closing(listener):
        spec = {
            "driver": [[address, listener.getsockname()[1]] for address in addresses],
            "env": dict(config.env),
            "gpus": run_plan.gpus_by_rank,
            "gpu_resource_name": config.gpu_resource_name,
            "network": run_plan.settings.worker_network,
            "ports": run_plan.settings.worker_ports,
            "loopback": facts.is_local,
            # Leaves the tasks time to start and to try connections, so that they report before the driver gives up.
            "import_seconds": max(timeout - _SECONDS_BESIDES_IMPORT, timeout / 2),
        }
        try:
            rows = _run_tasks(
                gateway, shipped("cli.probe", "probe_task", json.dumps(spec)), run_plan.num_tasks, timeout
            )
        except DistributorError as error:
            found.findings.append(_problem(error))
            return
    found.tasks = [json.loads(facts) for _, facts in sorted(rows)]
    found.findings += findings_of(config, run_plan, found.tasks, found.driver, time.time())


def _run_tasks(gateway: SparkGateway, task: Any, num_tasks: int, timeout: float) -> list[tuple[int, str]]:
    """Return the rows of a barrier job.

    Raises:
        ClusterError: The job fails, or its tasks have not ended after ``timeout`` seconds.
    """
    source = gateway.spark.range(0, num_tasks, 1, num_tasks)
    frame = source.mapInArrow(task, SCHEMA, barrier=True)
    job = SparkJob(gateway, frame, "doctor", collect=lambda frame: [tuple(row) for row in frame.collect()])
    job.start(lambda: None)
    job.join(timeout)
    if job.is_alive:
        job.cancel()
        with suppress(RuntimeError):
            job.join(10.0)
        raise ClusterError(
            f"The {num_tasks} barrier tasks have not ended after {timeout:g} s. Either the cluster has too few free "
            "slots, or an executor hangs: look at Spark's web UI."
        )
    if job.error is not None:
        raise ClusterError(
            f"Spark cannot run a barrier job of {num_tasks} Python tasks: {sentence(brief(str(job.error)))}"
        )
    return job.rows
