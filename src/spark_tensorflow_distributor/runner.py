"""MirroredStrategyRunner, the entry point of distributed training."""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, overload

from .config import RunnerConfig
from .data.frames import frames_of
from .errors import CallError, ConfigurationError, DistributorError
from .runtime.driver import local, pickling, plan
from .runtime.driver.autolog_hint import warn_of_autolog
from .runtime.driver.callbacks import CallbackList, RunCallback
from .runtime.driver.handle import RunHandle
from .runtime.driver.interrupts import first_interrupt_stops
from .runtime.driver.local_run import LocalRun
from .runtime.driver.modules import pack_modules
from .runtime.driver.report import RunReport
from .runtime.driver.run import Program
from .runtime.driver.spark import SparkGateway, active_session, check_sessions
from .runtime.driver.tracked_run import TrackedRun, changed_settings, without_frames

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def _keywords_only(init: Callable[P, None]) -> Callable[P, None]:
    """Reject positional arguments of a constructor; unlike Python's own message, the error says what to call."""

    @functools.wraps(init)  # also keeps the signature
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        if len(args) > 1:
            raise CallError(
                f"MirroredStrategyRunner() takes keyword arguments only, but the value {args[1]!r} was passed by "
                f"position. Call MirroredStrategyRunner(num_slots={args[1]!r}, ...)."
            )
        init(*args, **kwargs)

    return checked


class MirroredStrategyRunner:
    """Trains one TensorFlow model synchronously on several workers of a Spark cluster.

    :meth:`run` starts the tasks of one Spark barrier stage at the same time. Each task is one worker: it starts a
    process that calls the training function under a ``tf.distribute`` strategy that spans all workers.

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
        checkpoint_dir (str or os.PathLike): Where to keep checkpoints: a path that all hosts share, or a URL of a file
            system that TensorFlow or fsspec supports; a later run with the same value resumes where this one stopped.
            Default: with ``max_restarts``, the driver keeps them until the run ends.
        checkpoint_every (float or str): Time between two checkpoints of ``fit`` in seconds, or a string such as
            ``"500 steps"``; the end of each epoch is saved as well. Default: 30.0.
        start_timeout (float): Time limit, in seconds, for each of three steps: executors register, all workers join,
            and the workers connect to each other. Default: 600.
        stall_timeout (float): Seconds without progress after which the attempt fails and reports the stacks of all
            workers; progress is a step of training, evaluation or prediction, or output outside of ``fit``. Default:
            never.
        log_to_driver (bool or str): Whether to show the workers' output on the driver, each line as ``[rank 3 @ host]
            line``; with ``"logging"``, the lines go to the logger ``spark_tensorflow_distributor.workers`` instead.
            Default: True.
        progress (bool): Whether to show a progress bar for each ``fit``, over all of its epochs. Default: only in a
            terminal or notebook.
        env (Mapping[str, str]): Additional environment variables for the workers, except ``TF_CONFIG`` and
            ``CUDA_VISIBLE_DEVICES``. Default: none.
        resource_profile (pyspark.resource.ResourceProfile): Resource profile of the tasks, for stage-level scheduling.
            Default: Spark's default profile.
        gradient_compression (str): ``"bfloat16"`` or ``"float16"`` halves the network traffic of gradients between
            hosts; each host adds in float32 and rounds the sum before sending it. It does not affect metrics, the
            indices of sparse gradients, gradients of up to 64 KiB in total, or exchanges within one host, whose workers
            share memory. Default: None, gradients are not rounded.
        py_modules (Sequence[ModuleType, str or PathLike]): The caller's own modules and packages that are not installed
            on the executors: module objects, names that can be imported on the driver, or paths of files, of packages'
            directories, or of ``.zip``, ``.egg`` and ``.whl`` archives. Each run sends their current contents. Default:
            none.
        callbacks (Iterable[RunCallback]): Objects that follow the run on the driver and may stop training early.
            Default: none.
        log_dir (str or os.PathLike): Directory on the driver, created if necessary. Files that the workers write below
            ``get_context().log_dir`` appear in it: TensorBoard logs, profiles or any others. Default: none.

    Attributes:
        report: The :class:`RunReport` of the last run, which is updated during the run; None before the first one.

    Raises:
        ConfigurationError: An argument is invalid.
        GpuConfigurationError: ``use_gpu`` is set and Spark's settings do not schedule GPUs.
    """

    @_keywords_only
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
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: float | str = 30.0,
        start_timeout: float = 600,
        stall_timeout: float | None = None,
        log_to_driver: bool | str = True,
        progress: bool | None = None,
        env: Mapping[str, str] | None = None,
        resource_profile: Any = None,
        gradient_compression: str | None = None,
        py_modules: Sequence[ModuleType | str | os.PathLike[str]] = (),
        callbacks: Iterable[RunCallback] = (),
        log_dir: str | os.PathLike[str] | None = None,
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
            gradient_compression=gradient_compression,
            py_modules=py_modules,
            log_dir=log_dir,
        )
        for warning in self._config.warnings:
            _log.warning(warning)
        self._callbacks = CallbackList(callbacks)
        self._session = spark
        self._last_gateway: SparkGateway | None = None
        self.report: RunReport | None = None
        if not local_mode:
            self.get_num_tasks()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in changed_settings(self._config).items())
        last = "" if self.report is None else f"; last run: {self.report.headline()}"
        return f"<MirroredStrategyRunner({arguments}){last}>"

    @property
    def spark(self) -> Any:
        """The SparkSession."""
        return self._gateway.spark

    @property
    def sc(self) -> Any:
        """The SparkContext (classic Spark only)."""
        return self._gateway.spark.sparkContext

    @property
    def _gateway(self) -> SparkGateway:
        """The session's gateway, created on first use: local_mode on CPUs needs no Spark."""
        gateway = self._last_gateway
        if gateway is None or gateway.is_stopped:
            session = active_session(self._session, creates=gateway is None)
            gateway = self._last_gateway = SparkGateway(session, self._config.resource_profile)
        return gateway

    def get_num_tasks(self) -> int:
        """Return the number of Spark tasks of a run, which is below ``num_slots`` if a task has several GPUs.

        Raises:
            GpuConfigurationError: Spark's settings do not schedule GPUs.
            ClusterError: The SparkSession has been stopped.
        """
        if not self._config.use_gpu:
            return self._config.num_slots
        return plan.num_tasks_for(self._config, self._gateway.facts(self._config))

    @overload
    def run(self, train_fn: Callable[..., T], **kwargs: Any) -> T: ...

    @overload
    def run(self, train_fn: str | os.PathLike[str], *, args: Sequence[str] = ()) -> None: ...

    def run(self, train_fn: Any, *misplaced: Any, **kwargs: Any) -> Any:
        """Run a training function on all workers and wait for its result.

        Args:
            train_fn: The function to call on every worker, under the strategy's scope unless ``use_custom_strategy``;
                or the path of a Python script, which gets its command line from ``args=[...]``.
            **kwargs: The function's keyword arguments. A Spark DataFrame arrives as a :class:`DataShard`, which holds
                this worker's rows.

        Returns:
            The value that the function returned on rank 0, or None for a script.

        Raises:
            TrainingFailedError: A worker failed; the original exception, if it can be pickled, is its ``__cause__``. In
                ``local_mode``, the function's own exceptions are raised unchanged instead.
            ConfigurationError: The function cannot be called with these arguments.
            CallError: An argument of the function was passed by position.
            ClusterError: The cluster, as configured, cannot run this.
            SerializationError: The function, an argument or the result cannot be serialised or loaded.
            RendezvousError: The workers could not form a group, for example within ``start_timeout``.
            CheckpointError: Checkpoints cannot be kept or read, for example in ``checkpoint_dir``.
            RunCancelledError: The run was interrupted in a notebook before its workers had started.
            DataError: TensorFlow has no equivalent for a column's type, or the rows do not match what the function
                requires. Errors that Spark raises while it computes a DataFrame are raised unchanged.
        """
        target = _target(train_fn, misplaced, kwargs)
        if self._config.local_mode:
            return self._run_locally(target, kwargs)
        try:
            run = self._plan_run(target, kwargs)
            with first_interrupt_stops(run.control):
                return run.execute()
        except DistributorError as error:
            failure = without_frames(error)
        try:
            raise failure
        finally:
            del failure  # it refers to this frame, which refers to the arguments

    def submit(self, train_fn: Any, *misplaced: Any, **kwargs: Any) -> RunHandle:
        """Run a training function as :meth:`run` does, but in the background.

        Several runs can share a cluster that has room for them; each has its own handle and report. Callbacks are
        called in the background thread of their run. A callback object follows one run at a time, so overlapping runs
        need separate runners with separate callbacks.

        Args:
            train_fn: See :meth:`run`.
            **kwargs: See :meth:`run`.

        Returns:
            A handle to wait for the result, follow the run, and end it.

        Raises:
            ConfigurationError: The function cannot be called with these arguments, or ``local_mode`` is set.
            CallError: An argument of the function was passed by position.
            ClusterError: The cluster, as configured, cannot run this.
            SerializationError: The function or an argument cannot be serialised.
            DataError: TensorFlow has no equivalent for a column's type.
        """
        target = _target(train_fn, misplaced, kwargs)
        if self._config.local_mode:
            raise ConfigurationError(
                "submit() with local_mode=True: the function would share this process's environment and GPUs with "
                "whatever else runs in it. Use run(), or local_mode=False to train on the cluster."
            )
        return RunHandle(self._plan_run(target, kwargs), self._gateway)

    def _plan_run(self, target: Callable[..., Any] | str, kwargs: Mapping[str, Any]) -> TrackedRun:
        """Check everything that can be checked before the workers start, and begin the report."""
        warn_of_autolog(self._callbacks)
        arguments, frames = frames_of(kwargs)
        gateway = self._gateway
        gateway.check_interpreter(self._config.env)
        check_sessions(frames)
        run_plan = plan.make_plan(self._config, gateway.facts(self._config))
        for warning in run_plan.warnings:
            _log.warning(warning)
        if isinstance(target, str):
            packed = pickling.pack_script(target, kwargs.get("args", ()))
        else:
            packed = pickling.pack_function(target, arguments, is_connect=gateway.is_connect)
        program = Program(packed, isinstance(target, str), _name(target), frames, pack_modules(self._config.py_modules))
        run = TrackedRun(self._config, gateway, program, run_plan, kwargs, self._callbacks)
        self.report = run.report
        return run

    def _run_locally(self, target: Callable[..., Any] | str, kwargs: Mapping[str, Any]) -> Any:
        gpus = None
        if self._config.use_gpu:
            resources = self._gateway.driver_resources(self._config.gpu_resource_name)
            gpus = local.local_gpus(self._config, resources)
        run = LocalRun(self._config, _name(target), kwargs, gpus, self._callbacks)
        self.report = run.report
        return run.execute(target, *frames_of(kwargs))


def _name(target: Callable[..., Any] | str) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)


def _target(train_fn: Any, misplaced: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | str:
    """Return the function, or the path of a script as a string."""
    if misplaced:
        raise CallError(pickling.misplaced_text(train_fn, misplaced))
    target = os.fspath(train_fn) if isinstance(train_fn, str | os.PathLike) else train_fn
    unexpected = sorted(set(kwargs) - {"args"})
    if isinstance(target, str) and unexpected:
        raise ConfigurationError(f"A script takes no arguments other than args=[...], but got {unexpected}.")
    return target
