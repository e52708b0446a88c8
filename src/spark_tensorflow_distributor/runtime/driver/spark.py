"""All uses of SparkSession: facts, submission, cancellation; the same on classic Spark and Spark Connect."""

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...config import RunnerConfig
from ...errors import ClusterError, ConfigurationError
from ..specs import ROW_SCHEMA
from . import plan
from .plan import ClusterFacts, is_local_master

_log = logging.getLogger(__name__)

_CONF_KEYS = (
    "spark.master", "spark.task.cpus", "spark.executor.cores", "spark.executor.instances", "spark.cores.max",
    "spark.dynamicAllocation.enabled", "spark.ssl.enabled", "spark.network.crypto.enabled",
    "spark.io.encryption.enabled", "spark.driver.maxResultSize", "spark.driver.host", "spark.driver.bindAddress",
    "spark.scheduler.maxRegisteredResourcesWaitingTime", plan.IGNORE_SSL, plan.WARM_START, plan.WARM_SECONDS,
    plan.DRIVER_PORT, plan.WORKER_PORTS,
)  # fmt: skip

Row = tuple[int, str, int, bytes]


def active_session(spark: Any = None) -> Any:
    """Return the given session, else the active one, else a new one as 1.0.0 did.

    Raises:
        ConfigurationError: ``spark`` is not a SparkSession.
        ClusterError: PySpark is not installed.
    """
    if spark is not None:
        if not hasattr(spark, "range") or not hasattr(spark, "conf"):
            raise ConfigurationError(f"spark is a {type(spark).__name__}; it must be a SparkSession.")
        return spark
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ClusterError(
            "PySpark is not installed for this interpreter. Install the cluster's version: "
            "pip install 'spark-tensorflow-distributor[spark]'."
        ) from error
    return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()


def is_connect(spark: Any) -> bool:
    """Return whether the session is a client of Spark Connect."""
    return ".connect." in f"{type(spark).__module__}."


def unwrapped(error: BaseException) -> BaseException:
    """Return what Spark raised, without the wrapper that ``toLocalIterator`` adds in classic PySpark."""
    java = getattr(error, "java_exception", None)
    if java is None:
        return error
    from pyspark.errors.exceptions.captured import convert_exception

    while java.getCause() is not None:
        java = java.getCause()
    converted: BaseException = convert_exception(java)
    return converted


class SparkGateway:
    """A session and what a run needs of it.

    Args:
        spark: The user's session. It is never stopped, and its settings are never changed.
        resource_profile: Of the job, or None.
    """

    def __init__(self, spark: Any, resource_profile: Any = None) -> None:
        self.spark = spark
        self.is_connect = is_connect(spark)
        self._profile = resource_profile

    def conf(self, key: str) -> str | None:
        """Return a setting of the session or the application."""
        value = self.spark.conf.get(key, None)  # a session inherits the application's settings
        return None if value is None else str(value)

    def facts(self, config: RunnerConfig) -> ClusterFacts:
        """Return what a plan depends on, as of now."""
        name = config.gpu_resource_name
        keys = (*_CONF_KEYS, f"spark.task.resource.{name}.amount", f"spark.executor.resource.{name}.amount")
        conf = {key: value for key in keys if (value := self.conf(key)) is not None}
        amount = None
        if self._profile is not None:
            request = self._profile.taskResources.get(name)
            amount = None if request is None else float(request.amount)
        if self.is_connect:
            return ClusterFacts(conf, True, task_resource_amount=amount, has_profile=self._profile is not None)
        workers = max(0, len(self.spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) - 1)
        return ClusterFacts(
            conf,
            slots=self._slots(),
            workers=workers,
            may_grow=self._may_grow(conf, workers),
            task_resource_amount=amount,
            has_profile=self._profile is not None,
        )

    def _slots(self) -> int | None:
        """Return the count by which Spark admits barrier stages; None if this version does not expose it."""
        if self._profile is not None:
            return None
        from py4j.protocol import Py4JError

        context = self.spark.sparkContext._jsc.sc()
        try:
            return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))
        except Py4JError:
            _log.debug("This version of Spark does not expose its number of slots.", exc_info=True)
            return None

    def _may_grow(self, conf: dict[str, str], workers: int) -> bool:
        """Return whether executors may still be registering: some are missing, or the application is young."""
        if is_local_master(conf.get("spark.master")):
            return False
        wanted = conf.get("spark.executor.instances", "")
        if wanted.isdigit() and workers < int(wanted):
            return True
        patience = conf.get("spark.scheduler.maxRegisteredResourcesWaitingTime", "30s")
        match = re.fullmatch(r"(\d+)\s*(ms|s|m|min)?", patience)
        seconds = int(match[1]) * {"ms": 0.001, "m": 60, "min": 60}.get(match[2] or "ms", 1) if match else 30.0
        age = time.time() - float(self.spark.sparkContext.startTime) / 1000
        return age < seconds

    def heap_bytes(self) -> int | None:
        """Return the heap size of the driver's JVM; None under Connect, where it runs on another machine."""
        if self.is_connect:
            return None
        return int(self.spark.sparkContext._jvm.java.lang.Runtime.getRuntime().maxMemory())

    def channel_address(self) -> tuple[str, tuple[str, ...]]:
        """Return the address to listen on, and those at which the workers may reach it."""
        if self.is_connect:
            own = _address_towards(_connect_host(self.spark))
            return own, (own,)
        if is_local_master(self.conf("spark.master")):
            return "127.0.0.1", ("127.0.0.1",)
        host = self.conf("spark.driver.host") or "localhost"
        bind = self.conf("spark.driver.bindAddress") or host
        return bind, (host,)

    def driver_resources(self, name: str) -> Sequence[str] | None:
        """Return the driver's own GPU addresses; None if it has no such resource or is a client of Connect."""
        if self.is_connect:
            return None
        resources = self.spark.sparkContext.resources
        return resources[name].addresses if name in resources else None

    def forget_host(self, host: str) -> None:
        """Make Spark replace the executors on a host that does not answer.

        Spark itself notices after ``spark.network.timeout`` (120 s) without heartbeats; until then it would send them
        the next attempt's tasks. Does nothing under Connect, or if the cluster manager cannot replace executors.
        """
        if is_connect(self.spark):
            return
        try:
            context = self.spark.sparkContext._jsc.sc()
            executors = context.statusStore().executorList(True)
            for number in range(executors.size()):
                executor = executors.apply(number)
                if executor.hostPort().rpartition(":")[0] == host and executor.id() != "driver":
                    context.killAndReplaceExecutor(executor.id())
                    _log.info("Gave up executor %s on %s.", executor.id(), host)
        except Exception as error:  # internals of Spark, and cluster managers that cannot
            _log.debug("Cannot give up the executors on %s: %s", host, error)

    def executors_reach(self, addresses: Sequence[tuple[str, int]]) -> bool:
        """Return whether a process on an executor can connect to one of the addresses.

        False if no slot is free to try within ten seconds: the run itself may hold them all.
        """
        reached: list[bool] = []

        def look(batches: Iterator[Any]) -> Iterator[Any]:
            import socket

            for batch in batches:
                for address in addresses:
                    try:
                        socket.create_connection(address, timeout=3).close()
                    except OSError:
                        continue
                    yield batch

        def ask() -> None:
            frame = self.spark.range(0, 1, 1, 1)
            with contextlib.suppress(Exception):  # cancelled, or the session is gone
                reached.append(len(frame.mapInArrow(look, frame.schema).collect()) > 0)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(10.0)
        return bool(reached and reached[0])

    def submit(
        self, task: Callable[[Iterator[Any]], Iterator[Any]], num_tasks: int, description: str, source: Any = None
    ) -> "SparkJob":
        """Run ``task`` once in each of ``num_tasks`` barrier tasks, in the background.

        Args:
            task: Maps Arrow batches to Arrow batches of ``ROW_SCHEMA``.
            num_tasks: Number of tasks.
            description: Shown in Spark's web UI if the user has set no description.
            source: A DataFrame of ``num_tasks`` partitions whose rows the tasks receive; None for a placeholder.
        """
        options = {} if self._profile is None else {"profile": self._profile}
        if source is None:
            source = self.spark.range(0, num_tasks, 1, num_tasks)
        try:
            frame = source.mapInArrow(task, ROW_SCHEMA, barrier=True, **options)
        except TypeError as error:  # PySpark 3.5 does not know the argument
            raise ConfigurationError(
                f"This version of PySpark does not support resource_profile ({error}). Use PySpark 4."
            ) from error
        return SparkJob(self, frame, description)


class SparkJob:
    """One Spark job on a thread of its own.

    Args:
        gateway: The session.
        frame: The DataFrame to collect.
        description: Shown in Spark's web UI if the user has set no description.

    Attributes:
        error: What the action raised, or None.
        rows: Its result, once it has ended.
    """

    def __init__(self, gateway: SparkGateway, frame: Any, description: str) -> None:
        self._gateway = gateway
        self._frame = frame
        self._description = description
        self._tag = f"spark-tensorflow-distributor-{threading.get_ident()}-{time.time_ns()}"
        self.error: BaseException | None = None
        self.rows: list[Row] = []
        self._on_end: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """Start the job; its thread calls ``on_end`` when it has ended."""
        self._on_end = on_end
        if self._gateway.is_connect:
            tags = self._gateway.spark.getTags()
            self._thread = threading.Thread(target=self._run, args=(tags,), daemon=True, name="spark-tensorflow-job")
        else:
            from pyspark import InheritableThread

            # The caller's job group, description and pool apply to the run as to any other action.
            self._thread = InheritableThread(target=self._run, daemon=True, name="spark-tensorflow-job")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def is_running_unseen(self, addresses: Sequence[tuple[str, int]]) -> bool:
        """Return whether the tasks run although none has connected to the driver's channel at ``addresses``."""
        if self._gateway.is_connect:
            return not self._gateway.executors_reach(addresses)
        return any(active for _, active in self._stages())

    def is_computing(self, num_tasks: int) -> bool:
        """Return whether Spark is still computing the tasks' input; assumed under Connect, which does not expose it."""
        if self._gateway.is_connect:
            return True
        # The tasks themselves start all at once and make up their whole stage.
        return any(active and (tasks, active) != (num_tasks, num_tasks) for tasks, active in self._stages())

    def _stages(self) -> Iterator[tuple[int, int]]:
        """Yield the numbers of tasks and of running tasks of each stage of this job."""
        tracker = self._gateway.spark.sparkContext._jsc.sc().statusTracker()
        for job in tracker.getJobIdsForTag(self._tag):
            found = tracker.getJobInfo(job)
            for stage in found.get().stageIds() if found.isDefined() else ():
                info = tracker.getStageInfo(stage)
                if info.isDefined():
                    yield int(info.get().numTasks()), int(info.get().numActiveTasks())

    def cancel(self) -> None:
        """Cancel the job. The session and its other jobs continue."""
        with contextlib.suppress(Exception):  # a stopped session has no job left to cancel
            if self._gateway.is_connect:
                self._gateway.spark.interruptTag(self._tag)
            else:
                self._gateway.spark.sparkContext.cancelJobsWithTag(self._tag)

    def _run(self, tags: Sequence[str] = ()) -> None:
        try:
            if self._gateway.is_connect:
                for tag in (*tags, self._tag):
                    self._gateway.spark.addTag(tag)
            else:
                context = self._gateway.spark.sparkContext
                context.addJobTag(self._tag)
                if context.getLocalProperty("spark.job.description") is None:
                    context.setJobDescription(self._description)
            self.rows = _collect(self._frame)
        except BaseException as error:
            self.error = error
        finally:
            self._frame = None
            self._on_end()


def _collect(frame: Any) -> list[Row]:
    """Collect the rows, through Arrow if possible: chunks of a large result are not copied row by row then."""
    if not hasattr(frame, "toArrow"):
        return [(row[0], row[1], row[2], bytes(row[3])) for row in frame.collect()]
    columns = [column.to_pylist() for column in frame.toArrow().columns]
    return list(zip(*columns, strict=True))


def _connect_host(spark: Any) -> str:
    client = getattr(spark, "client", None) or getattr(spark, "_client", None)
    return str(getattr(client, "host", None) or "localhost")


def _address_towards(host: str) -> str:
    """Return this machine's address as ``host`` sees it; sends no packet."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"
