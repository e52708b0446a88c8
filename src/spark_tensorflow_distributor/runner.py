"""MirroredStrategyRunner: the public door to a run."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from .config import RunnerConfig
from .data.frames import Frames, frames_of
from .errors import ConfigurationError
from .runtime.driver import local, pickling, plan
from .runtime.driver.report import RunReport
from .runtime.driver.run import Program, Run
from .runtime.driver.spark import SparkGateway, active_session

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
        max_restarts: launch the whole group again up to this often after a failure. ``fit`` goes on after the last
            checkpoint; it needs no change to the function.
        min_slots: a relaunch may go on with as few slots as this when some are gone; default: ``num_slots``.
        checkpoint_dir: where checkpoints are kept: a path that all hosts share, or a URL of a file system that
            TensorFlow or fsspec knows. A later run with the same one goes on where this one was stopped. Default: the
            driver keeps them, as long as the run lasts.
        checkpoint_every: seconds between two checkpoints of ``fit``, or a text such as ``"500 steps"``. One is made at
            the end of each epoch, too.
        start_timeout: seconds until executors have registered, and until all workers have met.
        stall_timeout: seconds without progress (a step of ``fit``, of evaluation or prediction; output, outside of
            ``fit``) before the run is failed with the stacks of all workers; None for never.
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
        checkpoint_every: float | str = 30.0,
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
            checkpoint_every=checkpoint_every,
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
            kwargs: its keyword arguments. In the place of a Spark DataFrame the function gets a ``DataShard`` with
                this worker's share of the rows.

        Returns:
            What the function returned on rank 0; None for a script.

        Raises:
            TrainingFailedError: a worker failed; the original exception is its ``__cause__``.
            ClusterError: the cluster, as it is, cannot run this.
            SerializationError: the function, an argument or the result cannot travel.
            RendezvousTimeoutError: the workers did not come within ``start_timeout``.
            DataError: a DataFrame has a column that has no meaning in TensorFlow, or rows that do not fit what the
                function asks for. What Spark raises while it computes a DataFrame is raised as it is.
        """
        is_script = isinstance(train_fn, str | os.PathLike)
        if is_script:
            train_fn = os.fspath(train_fn)  # type: ignore[arg-type]
            if set(kwargs) - {"args"}:
                raise ConfigurationError(f"A script takes args=[...] alone, and got {sorted(set(kwargs) - {'args'})}.")
        arguments, frames = frames_of(kwargs)
        if self._config.local_mode:
            return self._run_locally(train_fn, arguments, frames)
        started = time.monotonic()
        gateway = self._gateway
        made = plan.make_plan(self._config, gateway.facts(self._config))
        for warning in made.warnings:
            _log.warning(warning)
        if is_script:
            payload = pickling.pack_script(train_fn, kwargs.get("args", ()))  # type: ignore[arg-type]
        else:
            payload = pickling.pack_function(train_fn, arguments, frames.names)  # type: ignore[arg-type]
        program = Program(payload, is_script, _name_of(train_fn), frames)
        self.report = RunReport(self._config.num_slots, made.num_tasks)
        try:
            value = Run(self._config, gateway, program, self.report).execute(made)
            self.report.succeeded = True
            return value
        finally:
            self.report.seconds = time.monotonic() - started

    def _run_locally(self, train_fn: Callable[..., Any] | str, arguments: Mapping[str, Any], frames: Frames) -> Any:
        gpus = None
        if self._config.use_gpu:
            name = self._config.gpu_resource_name
            gpus = local.local_gpus(self._config, self._gateway.driver_resources(name))
        return local.run_locally(self._config, train_fn, arguments, gpus, frames)


def _name_of(train_fn: Any) -> str:
    return train_fn if isinstance(train_fn, str) else getattr(train_fn, "__name__", type(train_fn).__name__)
