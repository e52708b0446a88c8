"""Records a run in MLflow."""

import importlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from ..errors import ConfigurationError
from ..formatting import a_type
from ..runtime.driver.callbacks import RunCallback
from ..runtime.driver.report import AttemptReport, RunReport
from . import mlflow_model

_log = logging.getLogger(__name__)

# Custom loops may report many times a second, and every request takes some milliseconds.
_FLUSH_SECONDS = 1.0
# Keep at most this many unsent metrics. After a failed request, wait before the next one: a request to a dead server
# takes minutes.
_MAX_WAITING = 20_000
_RETRY_SECONDS = 60.0
# MLflow's limits on one request, and on the length of a value.
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100
_MAX_VALUE = 500

_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "cancelled": "KILLED"}
_TAG = "spark_tensorflow_distributor"


class MLflowCallback(RunCallback):
    """Records each run of a runner as one MLflow run, from the driver; needs the extra ``mlflow``.

    - Params: the function's arguments, the runner's arguments, versions, and the number of rows of each DataFrame.
    - Metrics: those of every epoch, with the epoch as the step, across restarts, too; ``epoch_seconds`` and
      ``rows_per_second``; and for each worker ``system/rank_0/memory_megabytes`` and ``system/rank_0/cpu_seconds``.
      The names of a second ``fit``'s metrics begin with ``fit2/``.
    - Tags: status, attempts, the cause of each failed attempt, and what stopped training early.
    - Artifacts: the report as ``report.json``, ``report.txt`` and ``report.html``, and with ``log_model`` the model.

    If MLflow has an active run in the calling thread, the new run is nested in it, unless ``tracking_uri`` is passed.
    The training function needs no code for MLflow.

    Args:
        tracking_uri: Where MLflow keeps its runs. Default: as set by ``mlflow.set_tracking_uri`` or the environment.
        experiment: Name of the experiment, which is created if it does not exist. Default: that of the run in which
            this one is nested, else the active experiment; with ``tracking_uri``, the one that the environment variable
            ``MLFLOW_EXPERIMENT_NAME`` or ``MLFLOW_EXPERIMENT_ID`` selects, else MLflow's default experiment.
        run_name: Name of the run. Default: the training function's name.
        params: Additional params, which replace others of the same name. Default: none.
        log_model: Whether to log the Keras model that the function returns, with its signature, as the artifact
            ``model``. Needs TensorFlow on the driver. Default: False.

    Attributes:
        run_id: Id of the MLflow run; None before the run has begun.

    Raises:
        ConfigurationError: MLflow is not installed, or an argument is invalid.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        params: Mapping[str, Any] | None = None,
        log_model: bool = False,
    ) -> None:
        if params is not None and not isinstance(params, Mapping):
            raise ConfigurationError(f"params is {a_type(params)}; it must be a mapping of names to values.")
        try:
            self._mlflow = importlib.import_module("mlflow")
        except ImportError as error:
            raise ConfigurationError(
                f"MLflow cannot be imported on the driver ({error}). Install it there with "
                "pip install 'spark-tensorflow-distributor[mlflow]'; the workers do not need it."
            ) from error
        self._tracking_uri, self._experiment, self._run_name = tracking_uri, experiment, run_name
        self._extra_params, self._log_model = dict(params or {}), log_model
        self._client: Any = None
        self._report: RunReport | None = None
        self._waiting: list[Any] = []
        self._next_flush = 0.0
        self.run_id: str | None = None

    def on_run_begin(self, report: RunReport) -> None:
        """Create the MLflow run, with the params that are known so far."""
        self._report, self._waiting, self._next_flush, self.run_id = report, [], 0.0, None
        self._client = self._mlflow.MlflowClient(tracking_uri=self._tracking_uri)
        parent = self._mlflow.active_run() if self._tracking_uri is None else None
        experiment = self._experiment_id(parent)
        tags = {"mlflow.source.name": report.function, f"{_TAG}.status": report.status}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent.info.run_id
        name = self._run_name or report.function or None
        self.run_id = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        settings = {f"runner.{name}": value for name, value in report.settings.items()}
        self._log_params({**settings, **_versions(), **report.arguments, **self._extra_params})

    def _experiment_id(self, parent: Any) -> str:
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if self._experiment is None:
            if parent is not None:
                return str(parent.info.experiment_id)
            if self._tracking_uri is None:
                # What mlflow.set_experiment and the environment select; MLflow has no public name for it.
                active = getattr(importlib.import_module("mlflow.tracking.fluent"), "_get_experiment_id", None)
                return str(active()) if active is not None else "0"
        if name is None:
            return os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def on_epoch_end(self, fit: int | None, epoch: int, logs: dict[str, float]) -> None:
        """Queue an epoch's metrics; send the queue at most once a second."""
        if self.run_id is None or self._report is None:
            return
        prefix = f"fit{fit + 1}/" if fit else ""
        metrics = {f"{prefix}{name}": value for name, value in logs.items()}
        if fit is not None:
            history = reversed(self._report.history)
            entry = next((each for each in history if (each["fit"], each["epoch"]) == (fit, epoch)), None)
            if entry is not None:
                speed = {"epoch_seconds": entry["seconds"], "rows_per_second": entry["rows_per_second"]}
                metrics |= {f"{prefix}{name}": value for name, value in speed.items() if value is not None}
            metrics.update(_system_metrics(self._report))
        self._queue(metrics, epoch)
        if time.monotonic() >= self._next_flush:
            self._flush()

    def on_attempt_end(self, report: AttemptReport) -> None:
        """Send the remaining metrics, and tag the cause of a failure."""
        if self.run_id is None:
            return
        self._client.set_tag(self.run_id, f"{_TAG}.attempts", str(report.attempt + 1))
        if report.root_cause is not None:
            failure = report.failures[report.root_cause]
            text = f"rank {failure.rank} @ {failure.host}: {failure.kind}: {failure.message}"
            self._client.set_tag(self.run_id, f"{_TAG}.attempt_{report.attempt}.failure", text[:_MAX_VALUE])
        self._flush()

    def on_result(self, value: Any) -> None:
        """Log the model that the function returned."""
        if self.run_id is not None and self._log_model:
            with tempfile.TemporaryDirectory() as folder:
                path = mlflow_model.save(value, folder)
                self._client.log_artifacts(self.run_id, path, "model")

    def on_run_end(self, report: RunReport) -> None:
        """Log the report, and end the MLflow run."""
        if self.run_id is None:
            return
        try:
            self._next_flush = 0.0
            self._flush()
            tags = {"status": report.status, "stopped_by": report.stopped_by, "error": report.error[:_MAX_VALUE]}
            for name, value in tags.items():
                if value:
                    self._client.set_tag(self.run_id, f"{_TAG}.{name}", value)
            self._log_params(_data_sizes(report))
            self._client.log_dict(self.run_id, report.to_dict(), "report.json")
            self._client.log_text(self.run_id, str(report), "report.txt")
            self._client.log_text(self.run_id, report.to_html(), "report.html")
        finally:
            self._client.set_terminated(self.run_id, _STATUS[report.status])

    def _queue(self, metrics: Mapping[str, float], step: int) -> None:
        entity, now = self._mlflow.entities.Metric, int(time.time() * 1000)
        self._waiting += [entity(name, float(value), now, step) for name, value in metrics.items()]
        del self._waiting[:-_MAX_WAITING]

    def _flush(self) -> None:
        """Send the queued metrics, unless a request has failed within the last minute."""
        now = time.monotonic()
        if not self._waiting or now < self._next_flush - _FLUSH_SECONDS:
            return
        self._next_flush = now + _RETRY_SECONDS
        while self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting[:_METRICS_AT_ONCE])
            del self._waiting[:_METRICS_AT_ONCE]
        self._next_flush = now + _FLUSH_SECONDS

    def _log_params(self, params: Mapping[str, Any]) -> None:
        entity = self._mlflow.entities.Param
        entities = [entity(str(name), str(value)[:_MAX_VALUE]) for name, value in params.items()]
        for start in range(0, len(entities), _PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, params=entities[start : start + _PARAMS_AT_ONCE])


def _versions() -> dict[str, str]:
    versions = {"version.python": platform.python_version()}
    for name in ("spark-tensorflow-distributor", "pyspark", "keras", "tf_keras"):
        try:
            versions[f"version.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _data_sizes(report: RunReport) -> dict[str, Any]:
    """Return what only the workers know: the rows of each DataFrame, over all ranks, and TensorFlow's version."""
    rows: dict[str, int] = {}
    for worker in report.workers.values():
        for name, count in worker.rows.items():
            rows[f"rows.{name}"] = rows.get(f"rows.{name}", 0) + count
    versions = sorted({worker.tensorflow for worker in report.workers.values() if worker.tensorflow})
    return {**rows, **({"version.tensorflow": ", ".join(versions)} if versions else {}), "workers": report.num_tasks}


def _system_metrics(report: RunReport) -> dict[str, float]:
    metrics = {}
    for rank, vitals in report.vitals.items():
        if "rss" in vitals:
            metrics[f"system/rank_{rank}/memory_megabytes"] = float(vitals["rss"]) / 1e6
        if "cpu" in vitals:
            metrics[f"system/rank_{rank}/cpu_seconds"] = float(vitals["cpu"])
    return metrics
