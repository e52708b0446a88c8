"""MirroredStrategyRunner: the public door to a run."""

import importlib.metadata
import logging
import os
import pickle
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..config import RunnerConfig
from ..errors import ConfigurationError, SerializationError
from ..protocol import TaskSpec, failure_from_record
from ..shipping import spark_task
from . import attempts, local, pickling, plan
from .channel import Channel
from .console import Console, wants_progress
from .launch import Launch, LaunchResult, submit
from .report import AttemptReport, RunReport
from .spark import SparkGateway, active_session

_log = logging.getLogger("spark_tensorflow_distributor")


class MirroredStrategyRunner:
    """Trains one TensorFlow model on the workers of a Spark cluster, synchronously.

    All tasks of a Spark barrier stage start together, meet, and run the training function under a
    ``tf.distribute.MultiWorkerMirroredStrategy``; each in a process of its own.

    Args:
        num_slots: GPUs to train on, or with ``use_gpu=False`` Spark tasks, each one CPU worker. At least 1.
        local_mode: run the function in the driver's own process, on its GPUs if ``use_gpu``.
        use_gpu: train on the GPUs that Spark schedules (``spark.task.resource.<name>.amount``).
        gpu_resource_name: the ``<name>`` of the GPU resource in Spark's settings.
        use_custom_strategy: leave the strategy to the function; TF_CONFIG is set for it.
        spark: the session, classic or Connect; default: the active one, else a new one.
        max_restarts: launch the whole group again up to this often after a failure.
        min_slots: a relaunch may go on with as few slots as this when some are gone; default: ``num_slots``.
        checkpoint_dir: handed to the function as ``get_context().checkpoint_dir``.
        start_timeout: seconds until executors have registered, and until all workers have met.
        stall_timeout: seconds without any sign of progress (output, a step of ``fit``) before the run is failed;
            None for never.
        log_to_driver: show the workers' output here, each line as ``[rank 3 @ host] line``.
        progress: show a progress bar of the chief's ``fit``; default: in a terminal or notebook.
        env: extra environment variables for the workers.
        resource_profile: a ``pyspark.resource.ResourceProfile`` for the tasks.

    Attributes:
        report: the :class:`RunReport` of the last run, or None.

    Raises:
        ConfigurationError: an argument is wrong.
        GpuConfigurationError: ``use_gpu`` on a cluster whose settings schedule no GPUs.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        local_mode: bool = False,
        use_gpu: bool = True,
        gpu_resource_name: str = "gpu",
        use_custom_strategy: bool = False,
        spark: Any = None,
        max_restarts: int = 0,
        min_slots: int | None = None,
        checkpoint_dir: str | None = None,
        start_timeout: float = 600,
        stall_timeout: float | None = None,
        log_to_driver: bool = True,
        progress: bool | None = None,
        env: Mapping[str, str] | None = None,
        resource_profile: Any = None,
    ) -> None:
        self._config = RunnerConfig(
            num_slots=num_slots,
            local_mode=local_mode,
            use_gpu=use_gpu,
            gpu_resource_name=gpu_resource_name,
            use_custom_strategy=use_custom_strategy,
            max_restarts=max_restarts,
            min_slots=min_slots,
            checkpoint_dir=checkpoint_dir,
            start_timeout=start_timeout,
            stall_timeout=stall_timeout,
            log_to_driver=log_to_driver,
            progress=progress,
            env=dict(env or {}),
            resource_profile=resource_profile,
        )
        self._given_session = spark
        self._gateway_in_use: SparkGateway | None = None
        self.report: RunReport | None = None
        if not local_mode:
            self.get_num_tasks()

    @property
    def spark(self) -> Any:
        """The session that is used."""
        return self._gateway.spark

    @property
    def sc(self) -> Any:
        """The SparkContext (classic Spark only)."""
        return self._gateway.spark.sparkContext

    @property
    def _gateway(self) -> SparkGateway:
        # Made on first use: local_mode on CPUs needs no Spark.
        if self._gateway_in_use is None:
            self._gateway_in_use = SparkGateway(active_session(self._given_session), self._config.resource_profile)
        return self._gateway_in_use

    def get_num_tasks(self) -> int:
        """The number of Spark tasks that a run uses; 1 task may have several GPUs.

        Raises:
            GpuConfigurationError: Spark's settings schedule no GPUs.
        """
        if not self._config.use_gpu:
            return self._config.num_slots
        return plan.num_tasks_for(self._config, self._gateway.facts(self._config))

    def run(self, train_fn: Callable[..., Any] | str, **kwargs: Any) -> Any:
        """Train.

        Args:
            train_fn: the function to run on every worker, under the strategy's scope unless
                ``use_custom_strategy``; or the path of a Python script, whose command line is ``args=[...]``.
            kwargs: its keyword arguments.

        Returns:
            What the function returned on rank 0; None for a script.

        Raises:
            TrainingFailedError: a worker failed; the original exception is its ``__cause__``.
            ClusterError: the cluster, as it is, cannot run this.
            SerializationError: the function, an argument or the result cannot travel.
            RendezvousTimeoutError: the workers did not come within ``start_timeout``.
        """
        is_script = isinstance(train_fn, str | os.PathLike)
        if is_script:
            train_fn = os.fspath(train_fn)  # type: ignore[arg-type]
            if set(kwargs) - {"args"}:
                raise ConfigurationError(f"A script takes args=[...] alone, and got {sorted(set(kwargs) - {'args'})}.")
        attempts.check_config_for_run(kwargs)
        if self._config.local_mode:
            return self._run_locally(train_fn, kwargs)
        started = time.monotonic()
        gateway = self._gateway
        made = plan.make_plan(self._config, gateway.facts(self._config))
        for warning in made.warnings:
            _log.warning(warning)
        if is_script:
            payload = pickling.pack_script(train_fn, kwargs.get("args", ()))  # type: ignore[arg-type]
        else:
            payload = pickling.pack_function(train_fn, kwargs)  # type: ignore[arg-type]
        self.report = RunReport(self._config.num_slots, made.num_tasks)
        try:
            value = self._run_attempts(gateway, made, payload, is_script, _name_of(train_fn))
            self.report.succeeded = True
            return value
        finally:
            self.report.seconds = time.monotonic() - started

    def _run_locally(self, train_fn: Callable[..., Any] | str, kwargs: Mapping[str, Any]) -> Any:
        gpus = None
        if self._config.use_gpu:
            name = self._config.gpu_resource_name
            gpus = local.local_gpus(self._config, self._gateway.driver_resources(name))
        return local.run_locally(self._config, train_fn, kwargs, gpus)

    def _run_attempts(
        self, gateway: SparkGateway, made: plan.RunPlan, payload: bytes, is_script: bool, what: str
    ) -> Any:
        """Launch, and launch again for as long as the policy says so."""
        attempt, met_again = 0, 0
        num_slots = self._config.num_slots
        while True:
            made, num_slots = self._wait_for_slots(gateway, made, num_slots, attempt)
            result = self._launch(gateway, made, payload, is_script, what, attempt)
            if result.succeeded:
                return _unpickle(result)
            if attempts.should_meet_again(result, met_again):
                met_again += 1
                _log.info("Another process took a worker's port; the workers meet again.")
                continue
            error = attempts.error_of(result, self._config, made.num_tasks)
            if not attempts.should_restart(self._config, attempt, error):
                raise error
            attempt += 1
            _log.warning(
                "Attempt %d of %d failed, the group is launched again: %s",
                attempt, self._config.max_restarts + 1, str(error).split("\n")[0],
            )  # fmt: skip

    def _wait_for_slots(
        self, gateway: SparkGateway, made: plan.RunPlan, num_slots: int, attempt: int
    ) -> tuple[plan.RunPlan, int]:
        """Wait while executors are registering; a relaunch may shrink to ``min_slots``.

        Raises:
            InsufficientSlotsError: there are too few, and no more are to be expected.
        """
        deadline = time.monotonic() + self._config.start_timeout
        while True:
            facts = gateway.facts(self._config)
            error = plan.check_slots(self._config, facts, made.num_tasks)
            if error is None:
                return made, num_slots
            smaller = self._shrunk(facts, attempt)
            if smaller is not None:
                return smaller
            if not facts.may_grow or time.monotonic() > deadline:
                raise error
            time.sleep(0.25)

    def _shrunk(self, facts: plan.ClusterFacts, attempt: int) -> tuple[plan.RunPlan, int] | None:
        least = self._config.min_slots
        room = plan.max_slots(self._config, facts)
        if attempt == 0 or least is None or room < least:
            return None
        _log.warning("The cluster has room for %d of %d slots; going on with those.", room, self._config.num_slots)
        config = RunnerConfig(**{**vars(self._config), "num_slots": room, "min_slots": None})
        return plan.make_plan(config, facts), room

    def _launch(
        self, gateway: SparkGateway, made: plan.RunPlan, payload: bytes, is_script: bool, what: str, attempt: int
    ) -> LaunchResult:
        config = self._config
        secret = secrets.token_bytes(32)
        bind, advertised = gateway.channel_address()
        channel = Channel(secret, bind, advertised, int(gateway.conf(plan.DRIVER_PORT) or 0))
        console = Console(show_lines=config.log_to_driver, show_progress=wants_progress(config.progress))
        try:
            spec = self._spec(gateway, made, payload, is_script, attempt, secret, channel)
            job = submit(gateway, spark_task(pickle.dumps(spec)), made.num_tasks, what)
            result = Launch(spec, channel, console, config.stall_timeout).run(job)
        finally:
            channel.close()
            console.close()
        self._add_to_report(result, attempt, channel.dropped_lines)
        self._warn_of_version(result)
        return result

    def _spec(
        self,
        gateway: SparkGateway,
        made: plan.RunPlan,
        payload: bytes,
        is_script: bool,
        attempt: int,
        secret: bytes,
        channel: Channel,
    ) -> TaskSpec:
        config, facts = self._config, gateway.facts(self._config)
        limit = plan.parse_bytes(facts.conf.get("spark.driver.maxResultSize", "1g"), "spark.driver.maxResultSize")
        return TaskSpec(
            run_id=secrets.token_hex(4),
            attempt=attempt,
            world_size=made.num_tasks,
            secret=secret,
            driver_addresses=channel.addresses,
            gone_means_dead=gateway.is_connect,
            payload=payload,
            is_script=is_script,
            use_gpu=config.use_gpu,
            gpu_resource_name=config.gpu_resource_name,
            gpus_by_rank=made.gpus_by_rank,
            gpu_is_shared=made.gpu_is_shared,
            use_custom_strategy=config.use_custom_strategy,
            env=dict(config.env),
            checkpoint_dir=config.checkpoint_dir,
            start_timeout=config.start_timeout,
            max_result_bytes=limit,
            max_row_bytes=plan.max_row_bytes(limit, gateway.heap_bytes()),
            warm_start=plan.is_true(facts.conf.get(plan.WARM_START, "true"), plan.WARM_START),
            warm_seconds=float(facts.conf.get(plan.WARM_SECONDS, "300")),
            submitted_at=time.time(),
            loopback=facts.is_local,
            echo=not (facts.is_local and config.log_to_driver),
        )

    def _add_to_report(self, result: LaunchResult, attempt: int, dropped: int) -> None:
        if self.report is None:
            return
        failures = {rank: failure_from_record(*each) for rank, each in sorted(result.failures.items())}
        cause = attempts.root_cause(result.failures)
        workers = dict(sorted(result.reports.items()))
        self.report.attempts.append(AttemptReport(attempt, result.seconds, workers, failures, cause))
        self.report.num_tasks = max(1, len(workers)) if result.succeeded else self.report.num_tasks
        self.report.dropped_lines += dropped + sum(worker.dropped_lines for worker in workers.values())

    def _warn_of_version(self, result: LaunchResult) -> None:
        """A model that one version returns may not load in another."""
        try:
            own = importlib.metadata.version("tensorflow")
        except importlib.metadata.PackageNotFoundError:
            return
        theirs = {worker.tensorflow for worker in result.reports.values() if worker.tensorflow}
        if any(version.split(".")[:2] != own.split(".")[:2] for version in theirs):
            _log.warning(
                "The executors have TensorFlow %s, and the driver has %s: a model that is returned may not load here.",
                ", ".join(sorted(theirs)), own,
            )  # fmt: skip


def _unpickle(result: LaunchResult) -> Any:
    chunks = result.value or []
    if not chunks:
        return None
    try:
        return pickle.loads(b"".join(chunks))
    except Exception as error:
        raise SerializationError(
            f"The function returned a value that cannot be loaded at the driver: {type(error).__name__}: {error}. The "
            "driver needs the packages that the value is made of, in the versions of the executors."
        ) from error


def _name_of(train_fn: Any) -> str:
    return train_fn if isinstance(train_fn, str) else getattr(train_fn, "__name__", type(train_fn).__name__)
