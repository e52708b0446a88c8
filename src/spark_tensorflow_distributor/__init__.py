"""Distributed TensorFlow and Keras training on Apache Spark.

The public interface consists of the names in ``__all__``. Each is loaded on first use, so importing the package is
cheap: a worker that calls :func:`get_context` never loads the driver's modules.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names

__version__ = "2.0.0rc1"

_HOMES = {
    "MirroredStrategyRunner": "runner",
    "RunReport": "runtime.driver.report",
    "RunHandle": "runtime.driver.handle",
    "RunCallback": "runtime.driver.callbacks",
    "MLflowCallback": "tracking.mlflow",
    "WorkerReport": "runtime.driver.report",
    "DataShard": "data.shard",
    "StepComparison": "training.step_comparison",
    "compare_step": "training.compare_step",
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
    "StepComparison",
    "TrainingFailedError",
    "WorkerContext",
    "WorkerDataError",
    "WorkerFailure",
    "WorkerReport",
    "compare_step",
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
    from .training.compare_step import compare_step
    from .training.step_comparison import StepComparison

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
