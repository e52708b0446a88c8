"""MirroredStrategyRunner, the entry point of distributed training."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from .config import RunnerConfig
from .data.frames import Frames, frames_of
from .errors import ConfigurationError
from .runtime.driver import local, pickling, plan
from .runtime.driver.report import RunReport
from .runtime.driver.run import Program, Run
from .runtime.driver.spark import SparkGateway, active_session

_log = logging.getLogger(__name__)


class MirroredStrategyRunner:
    """Trains one TensorFlow model synchronously on several workers of a Spark cluster.

    :meth:`run` starts the tasks of one Spark barrier stage at the same time. Each task is one worker: it starts a
    process that calls the training function under a ``tf.distribute.MultiWorkerMirroredStrategy`` of all workers.

    Example::

        def train(learning_rate):
            import tensorflow as tf
            ...
            return model

        model = MirroredStrategyRunner(num_slots=8).run(train, learning_rate=0.001)

    Args:
        num_slots (int): Number of GPUs to train on; with ``use_gpu=False``, number of Spark tasks, each of which is one
            CPU worker. At least 1.
        local_mode (bool): Whether to call the training function in the driver's own process, with the driver's GPUs if
            ``use_gpu``, instead of on the cluster. Default: False.
        use_gpu (bool): Whether to train on the GPUs that Spark schedules (``spark.task.resource.<name>.amount``).
            Default: True.
        gpu_resource_name (str): The ``<name>`` of the GPU resource in Spark's settings. Default: ``"gpu"``.
        use_custom_strategy (bool): Whether the training function creates its own strategy; ``TF_CONFIG`` is set for it.
            Default: False.
        spark (SparkSession): Session to use, classic or Spark Connect. Default: the active session, or a new one.
        max_restarts (int): How many times to relaunch all workers after a failure; each ``fit`` then resumes from its
            last checkpoint, without any change to the training function. Default: 0.
        min_slots (int): Smallest number of slots with which to relaunch if some slots are gone. Default: ``num_slots``.
        checkpoint_dir (str): Where to keep checkpoints: a path that all hosts share, or a URL of a file system that
            TensorFlow or fsspec supports; a later run with the same value resumes where this one stopped. Default:
            the driver keeps them until the run ends.
        checkpoint_every (float or str): Time between two checkpoints of ``fit`` in seconds, or a string such as
            ``"500 steps"``; the end of each epoch is saved as well. Default: 30.0.
        start_timeout (float): Seconds to wait for executors to register, and then for all workers to join the group.
            Default: 600.
        stall_timeout (float): Seconds without progress after which the attempt fails and reports the stacks of all
            workers; progress is a step of training, evaluation or prediction, or output outside of ``fit``. Default:
            never.
        log_to_driver (bool): Whether to show the workers' output on the driver, each line as ``[rank 3 @ host] line``.
            Default: True.
        progress (bool): Whether to show a progress bar for ``fit`` on rank 0. Default: only in a terminal or notebook.
        env (Mapping[str, str]): Additional environment variables for the workers, except ``TF_CONFIG`` and
            ``CUDA_VISIBLE_DEVICES``. Default: none.
        resource_profile (pyspark.resource.ResourceProfile): Resource profile of the tasks, for stage-level scheduling.
            Default: Spark's default profile.

    Attributes:
        report: The :class:`RunReport` of the last run on the cluster, or None.

    Raises:
        ConfigurationError: An argument is invalid.
        GpuConfigurationError: ``use_gpu`` is set and Spark's settings do not schedule GPUs.
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
            env={} if env is None else env,
            resource_profile=resource_profile,
        )
        self._session = spark
        self.report: RunReport | None = None
        if not local_mode:
            self.get_num_tasks()

    @property
    def spark(self) -> Any:
        """The SparkSession."""
        return self._gateway.spark

    @property
    def sc(self) -> Any:
        """The SparkContext (classic Spark only)."""
        return self._gateway.spark.sparkContext

    @cached_property
    def _gateway(self) -> SparkGateway:  # created on first use: local_mode on CPUs needs no Spark
        return SparkGateway(active_session(self._session), self._config.resource_profile)

    def get_num_tasks(self) -> int:
        """Return the number of Spark tasks of a run, which is below ``num_slots`` if a task has several GPUs.

        Raises:
            GpuConfigurationError: Spark's settings do not schedule GPUs.
        """
        if not self._config.use_gpu:
            return self._config.num_slots
        return plan.num_tasks_for(self._config, self._gateway.facts(self._config))

    def run(self, train_fn: Callable[..., Any] | str, **kwargs: Any) -> Any:
        """Run a training function on all workers and wait for its result.

        Args:
            train_fn: The function to call on every worker, under the strategy's scope unless ``use_custom_strategy``;
                or the path of a Python script, which gets its command line from ``args=[...]``.
            **kwargs: The function's keyword arguments. A Spark DataFrame arrives as a :class:`DataShard`, which holds
                this worker's rows.

        Returns:
            The value that the function returned on rank 0, or None for a script.

        Raises:
            TrainingFailedError: A worker failed; the original exception is its ``__cause__``.
            ConfigurationError: The function cannot be called with these arguments.
            ClusterError: The cluster, as configured, cannot run this.
            SerializationError: The function, an argument or the result cannot be serialised.
            RendezvousTimeoutError: The workers did not all start within ``start_timeout``.
            DataError: TensorFlow has no equivalent for a column's type, or the rows do not match what the function
                requires. Errors that Spark raises while it computes a DataFrame are raised unchanged.
        """
        target = os.fspath(train_fn) if isinstance(train_fn, str | os.PathLike) else train_fn
        unexpected = sorted(set(kwargs) - {"args"})
        if isinstance(target, str) and unexpected:
            raise ConfigurationError(f"A script takes no arguments other than args=[...], but got {unexpected}.")
        arguments, frames = frames_of(kwargs)
        if self._config.local_mode:
            return self._run_locally(target, arguments, frames)
        started = time.monotonic()
        run_plan = plan.make_plan(self._config, self._gateway.facts(self._config))
        for warning in run_plan.warnings:
            _log.warning(warning)
        if isinstance(target, str):
            program = Program(pickling.pack_script(target, kwargs.get("args", ())), True, target, frames)
        else:
            name = getattr(target, "__name__", type(target).__name__)
            program = Program(pickling.pack_function(target, arguments), False, name, frames)
        self.report = RunReport(self._config.num_slots, run_plan.num_tasks)
        try:
            value = Run(self._config, self._gateway, program, self.report).execute(run_plan)
            self.report.succeeded = True
            return value
        finally:
            self.report.seconds = time.monotonic() - started

    def _run_locally(self, target: Callable[..., Any] | str, arguments: Mapping[str, Any], frames: Frames) -> Any:
        gpus = None
        if self._config.use_gpu:
            resources = self._gateway.driver_resources(self._config.gpu_resource_name)
            gpus = local.local_gpus(self._config, resources)
        return local.run_locally(self._config, target, arguments, gpus, frames)
