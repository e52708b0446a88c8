"""Implements ``report`` and ``should_stop`` of ``get_context()``, for training loops that do not use ``fit``."""

from collections.abc import Mapping
from typing import Any

from ...context import WorkerContext
from ...errors import ConfigurationError
from .control import Control
from .metric_reports import MetricReports


class CustomLoop:
    """Reports a loop's metrics, and asks whether it should end.

    Args:
        context: This worker's context.
        control: The connection to the agent.
    """

    def __init__(self, context: WorkerContext, control: Control) -> None:
        self._context, self._control = context, control
        self._reports = MetricReports(control.send) if context.is_chief else None

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report the metrics of a step, if this is the chief."""
        if self._reports is not None:
            self._reports.report(step, metrics)

    def should_stop(self) -> bool:
        """Return whether training should end, the same on all ranks.

        Raises:
            ConfigurationError: With ``use_custom_strategy``, the call is made outside of the strategy's scope.
        """
        import tensorflow as tf

        from ...training.stopping import any_wants
        from ...training.tf_collectives import collectives_of

        # With use_custom_strategy, this is the strategy whose scope the caller is in.
        collectives = collectives_of(tf.distribute.get_strategy(), self._context.rank, self._context.world_size)
        if collectives.world_size < self._context.world_size:
            raise ConfigurationError(
                "get_context().should_stop() was called where the current strategy does not span all "
                f"{self._context.world_size} workers, so that they could not agree. Call it within strategy.scope(), "
                "in the thread that entered the scope."
            )
        return any_wants(self._control.should_stop(None), collectives)

    def flush(self) -> None:
        """Send the metrics that are queued."""
        if self._reports is not None:
            self._reports.flush()
