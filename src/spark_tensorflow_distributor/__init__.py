"""Distributed TensorFlow and Keras training on Apache Spark.

The public interface consists of the names in ``__all__``. Each is loaded on first use, so importing the package is
cheap: a worker that calls :func:`get_context` never loads the driver's modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "2.0.0rc1"

_HOMES = {
    "MirroredStrategyRunner": "runner",
    "RunReport": "runtime.driver.report",
    "RunHandle": "runtime.driver.handle",
    "RunCallback": "runtime.driver.callbacks",
    "MLflowCallback": "tracking.mlflow",
    "WorkerReport": "runtime.driver.report",
    "DataShard": "data.shard",
    "get_context": "context",
    "predict": "inference.predict",
    "predict_udf": "inference.predict",
    "WorkerContext": "context",
    "DistributorError": "errors",
    "CallError": "errors",
    "ConfigurationError": "errors",
    "ClusterError": "errors",
    "InsufficientSlotsError": "errors",
    "GpuConfigurationError": "errors",
    "EncryptionUnsupportedError": "errors",
    "RendezvousError": "errors",
    "RendezvousTimeoutError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
    "CollectiveError": "errors",
    "SerializationError": "errors",
    "RunCancelledError": "errors",
    "ResultNotLoadedError": "errors",
    "TrainingFailedError": "errors",
    "WorkerDataError": "errors",
    "WorkerFailure": "errors",
}

__all__ = [
    "CallError",
    "CheckpointError",
    "ClusterError",
    "CollectiveError",
    "ConfigurationError",
    "DataError",
    "DataShard",
    "DistributorError",
    "EncryptionUnsupportedError",
    "GpuConfigurationError",
    "InsufficientSlotsError",
    "MLflowCallback",
    "MirroredStrategyRunner",
    "RendezvousError",
    "RendezvousTimeoutError",
    "ResultNotLoadedError",
    "RunCallback",
    "RunCancelledError",
    "RunHandle",
    "RunReport",
    "SerializationError",
    "TrainingFailedError",
    "WorkerContext",
    "WorkerDataError",
    "WorkerFailure",
    "WorkerReport",
    "get_context",
    "predict",
    "predict_udf",
]

if TYPE_CHECKING:
    from .context import WorkerContext, get_context
    from .data.shard import DataShard
    from .errors import (
        CallError,
        CheckpointError,
        ClusterError,
        CollectiveError,
        ConfigurationError,
        DataError,
        DistributorError,
        EncryptionUnsupportedError,
        GpuConfigurationError,
        InsufficientSlotsError,
        RendezvousError,
        RendezvousTimeoutError,
        ResultNotLoadedError,
        RunCancelledError,
        SerializationError,
        TrainingFailedError,
        WorkerDataError,
        WorkerFailure,
    )
    from .inference.predict import predict, predict_udf
    from .runner import MirroredStrategyRunner
    from .runtime.driver.callbacks import RunCallback
    from .runtime.driver.handle import RunHandle
    from .runtime.driver.report import RunReport, WorkerReport
    from .tracking.mlflow import MLflowCallback


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
