"""Wraps the SparkSession, classic or Spark Connect: the facts about a cluster, and the operations of a run."""

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

from ...config import RunnerConfig
from ...data.frames import Frames
from ...errors import ClusterError, ConfigurationError, DataError
from ...formatting import a_type, sentence
from ...transport.sealing import can_encrypt
from .. import spark_settings
from ..specs import ROW_SCHEMA
from .addresses import address_towards, connect_host
from .executors import may_grow
from .interpreter import check_local_python
from .plan import ClusterFacts, is_local_master

_log = logging.getLogger(__name__)

_CONF_KEYS = (
    "spark.master", "spark.task.cpus", "spark.executor.cores", "spark.executor.instances", "spark.cores.max",
    "spark.dynamicAllocation.enabled", "spark.ssl.enabled", "spark.network.crypto.enabled",
    "spark.io.encryption.enabled", "spark.driver.host", "spark.driver.bindAddress",
    "spark.scheduler.maxRegisteredResourcesWaitingTime", *spark_settings.KEYS,
)  # fmt: skip

# What fits into a message to a Spark Connect server, with room to spare: client and server take 128 MiB by default.
CONNECT_LIMIT = 120 << 20


def session_class() -> Any:
    """Return ``pyspark.sql.SparkSession``.

    Raises:
        ClusterError: PySpark is not installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ClusterError(
            "PySpark is not installed for this interpreter. Install the cluster's version: "
            "pip install 'spark-tensorflow-distributor[spark]'."
        ) from error
    return SparkSession


def active_session(spark: Any = None, *, creates: bool = True) -> Any:
    """Return the given session, else the active one, else a new one as 1.0.0 did.

    Args:
        spark: The user's session, or None.
        creates: Whether to create a session if none is active.

    Raises:
        ConfigurationError: ``spark`` is not a SparkSession.
        ClusterError: The session has been stopped, or PySpark is not installed.
    """
    if spark is not None:
        if not hasattr(spark, "range") or not hasattr(spark, "conf"):
            raise ConfigurationError(f"spark is {a_type(spark)}; it must be a SparkSession.")
        if is_stopped(spark):
            raise ClusterError(
                "The SparkSession that was passed as spark= has been stopped. Pass the new session, or omit spark to "
                "use the active one."
            )
        return spark
    session = session_class()
    active = session.getActiveSession()
    if active is not None and not is_stopped(active):
        return active
    if not creates:
        raise ClusterError(
            "The SparkSession of this runner has been stopped, and no other one is active in this thread. Start one "
            "(SparkSession.builder.getOrCreate()), or pass it to a new runner as spark=..."
        )
    return session.builder.getOrCreate()


def is_stopped(spark: Any) -> bool:
    """Return whether the session can no longer run jobs: it, its SparkContext or its JVM has been stopped."""
    if is_connect(spark):
        return bool(getattr(spark, "is_stopped", False))
    from py4j.protocol import Py4JError

    context = spark.sparkContext._jsc
    try:
        return context is None or bool(context.sc().isStopped())
    except (Py4JError, OSError):  # the JVM is gone
        return True


def check_sessions(frames: Frames) -> None:
    """Check that the DataFrames can still be computed.

    Raises:
        DataError: The session of a DataFrame has been stopped.
    """
    for spec, frame in zip(frames.specs, frames.frames, strict=True):
        if is_stopped(frame.sparkSession):
            raise DataError(
                f"The DataFrame {spec.name!r} belongs to a SparkSession that has been stopped. Create it again with "
                "the new session."
            )


def is_connect(spark: Any) -> bool:
    """Return whether the session is a client of Spark Connect."""
    return ".connect." in f"{type(spark).__module__}."


def unwrapped(error: BaseException) -> BaseException:
    """Return Spark's error without the wrapper that ``toLocalIterator`` adds in classic PySpark."""
    java = getattr(error, "java_exception", None)
    if java is None:
        return error
    from pyspark.errors.exceptions.captured import convert_exception

    while java.getCause() is not None:
        java = java.getCause()
    converted: BaseException = convert_exception(java)
    return converted


class SparkGateway:
    """A session, with the operations that a run needs.

    Args:
        spark: The user's session. It is never stopped, and its settings are never changed.
        resource_profile: The job's resource profile, or None.
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
        """Return what a plan depends on, as of now.

        Raises:
            ClusterError: The session has been stopped, or Spark refuses the resource profile.
            ConfigurationError: This version of PySpark has no resource profiles for DataFrames.
        """
        if self.is_stopped:
            raise ClusterError("The SparkSession was stopped while the run waited for executors.")
        name = config.gpu_resource_name
        keys = (*_CONF_KEYS, f"spark.task.resource.{name}.amount", f"spark.executor.resource.{name}.amount")
        conf = {key: value for key in keys if (value := self.conf(key)) is not None}
        amount = None
        if self._profile is not None:
            _check_profiles(self.spark.range(1))
            request = self._profile.taskResources.get(name)
            amount = None if request is None else float(request.amount)
        if self.is_connect:
            return ClusterFacts(
                conf,
                True,
                task_resource_amount=amount,
                has_profile=self._profile is not None,
                can_encrypt=can_encrypt(),
            )
        executors = max(0, len(self.spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) - 1)
        return ClusterFacts(
            conf,
            slots=self._slots(),
            executors=executors,
            may_grow=may_grow(conf, executors, time.time() - float(self.spark.sparkContext.startTime) / 1000),
            task_resource_amount=amount,
            has_profile=self._profile is not None,
            can_encrypt=can_encrypt(),
            profile_tasks=self._profile_text(),
        )

    def check_interpreter(self, env: Mapping[str, str]) -> None:
        """With a local master, check the Python interpreter of Spark's workers.

        Args:
            env: The runner's argument.

        Raises:
            ClusterError: It does not exist, has a different version from this one, or lacks a package.
        """
        if not self.is_connect and is_local_master(self.conf("spark.master")):
            check_local_python(self.spark.sparkContext.pythonExec, env)

    @property
    def is_stopped(self) -> bool:
        return is_stopped(self.spark)

    def _profile_text(self) -> str:
        tasks = {} if self._profile is None else self._profile.taskResources
        return ", ".join(f"{name}={request.amount:g}" for name, request in sorted(tasks.items()))

    @cached_property
    def _java_profile(self) -> Any:
        """The resource profile, registered with Spark; None if this version of PySpark does not support it.

        Raises:
            ClusterError: Spark refuses the profile.
        """
        build = getattr(self.spark.range(1), "_build_java_profile", None)
        if build is None:
            return None
        from py4j.protocol import Py4JJavaError

        profile = build(self._profile)
        try:
            self.spark.sparkContext._jsc.sc().resourceProfileManager().addResourceProfile(profile)
        except Py4JJavaError as error:
            raise ClusterError(
                f"Spark does not accept the resource_profile: {sentence(error.java_exception.getMessage())} Without "
                "dynamic allocation, which barrier stages do not support, a profile may only have task "
                "requirements: ResourceProfileBuilder().require(TaskResourceRequests()...), on a standalone, YARN or "
                "Kubernetes cluster."
            ) from error
        return profile

    def _slots(self) -> int | None:
        """Return the number of slots as Spark counts it for barrier stages; None if this version does not expose it."""
        from py4j.protocol import Py4JError

        context = self.spark.sparkContext._jsc.sc()
        profile = context.resourceProfileManager().defaultResourceProfile()
        if self._profile is not None:
            profile = self._java_profile
            if profile is None:
                return None
        try:
            return int(context.maxNumConcurrentTasks(profile))
        except Py4JError:
            _log.debug("This version of Spark does not expose its number of slots.", exc_info=True)
            return None

    def slots(self) -> int | None:
        """Return how many tasks of this kind the cluster can run simultaneously now; None if unknown."""
        return None if self.is_connect or self.is_stopped else self._slots()

    def heap_bytes(self) -> int | None:
        """Return the heap size of the driver's JVM; None under Connect, where it runs on another machine."""
        if self.is_connect:
            return None
        return int(self.spark.sparkContext._jvm.java.lang.Runtime.getRuntime().maxMemory())

    def java_version(self) -> str | None:
        """Return the version of the driver's JVM; None under Connect."""
        if self.is_connect:
            return None
        return str(self.spark.sparkContext._jvm.java.lang.System.getProperty("java.version"))

    def channel_address(self) -> tuple[str, tuple[str, ...]]:
        """Return the address to listen on, and the addresses at which the workers may reach it."""
        if self.is_connect:
            own = address_towards(connect_host(self.spark))
            return own, (own,)
        if is_local_master(self.conf("spark.master")):
            return "127.0.0.1", ("127.0.0.1",)
        host = self.conf("spark.driver.host") or "localhost"
        bind = self.conf("spark.driver.bindAddress") or host
        return bind.strip("[]"), (host.strip("[]"),)  # Spark writes IPv6 addresses in brackets

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
        except Exception as error:  # Spark's internals changed, or its manager cannot do this
            _log.debug("Cannot give up the executors on %s: %s", host, error)

    def thread(self, target: Callable[[], None], name: str, *, daemon: bool) -> threading.Thread:
        """Return a thread, not yet started, to which the caller's job group, tags, description and pool apply."""
        if not self.is_connect:
            from pyspark import InheritableThread

            return InheritableThread(target=target, daemon=daemon, name=name)
        tags = self.spark.getTags()

        def tagged() -> None:
            for tag in tags:
                self.spark.addTag(tag)
            target()

        return threading.Thread(target=tagged, daemon=daemon, name=name)

    def barrier_frame(self, task: Callable[[Iterator[Any]], Iterator[Any]], num_tasks: int, source: Any = None) -> Any:
        """Return the DataFrame whose action runs ``task`` once in each of ``num_tasks`` barrier tasks.

        Args:
            task: Maps Arrow batches to Arrow batches of ``ROW_SCHEMA``.
            num_tasks: Number of tasks.
            source: A DataFrame of ``num_tasks`` partitions whose rows the tasks receive; None for a placeholder.
        """
        options = {} if self._profile is None else {"profile": self._profile}
        if source is None:
            source = self.spark.range(0, num_tasks, 1, num_tasks)
        return source.mapInArrow(task, ROW_SCHEMA, barrier=True, **options)

    def stages(self, tag: str) -> Iterator[tuple[int, int]]:
        """Yield the number of tasks, and of running tasks, for each stage of the jobs with a tag."""
        if self.is_stopped:
            return
        tracker = self.spark.sparkContext._jsc.sc().statusTracker()
        for job in tracker.getJobIdsForTag(tag):
            found = tracker.getJobInfo(job)
            for stage in found.get().stageIds() if found.isDefined() else ():
                info = tracker.getStageInfo(stage)
                if info.isDefined():
                    yield int(info.get().numTasks()), int(info.get().numActiveTasks())


def _check_profiles(frame: Any) -> None:
    """Check that the tasks of a DataFrame can have a resource profile.

    Raises:
        ConfigurationError: This is PySpark 3.5, where only RDDs can have one.
    """
    if "profile" not in inspect.signature(frame.mapInArrow).parameters:
        raise ConfigurationError(
            f"resource_profile needs PySpark 4: PySpark {version('pyspark')} has resource profiles for RDDs only, and "
            "training runs on DataFrames (mapInArrow). Upgrade PySpark, or leave resource_profile out and set "
            "spark.task.cpus and spark.task.resource.<name>.amount for the whole application."
        )
