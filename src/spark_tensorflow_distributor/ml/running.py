"""Runs a training when there is room for it."""

from collections.abc import Callable, Mapping
from typing import Any

from ..runner import MirroredStrategyRunner
from ..runtime.driver.spark import SparkGateway, is_connect
from .slots import queue_of


def waiting_runner(spark: Any, arguments: Mapping[str, Any]) -> tuple[Callable[..., Any], MirroredStrategyRunner]:
    """Return a runner, and a function like its ``run`` that first waits for the other trainings of this application.

    Args:
        spark: The session.
        arguments: The runner's other arguments.
    """
    runner = MirroredStrategyRunner(spark=spark, **arguments)
    if arguments["local_mode"]:
        return runner.run, runner
    gateway = SparkGateway(spark, arguments.get("resource_profile"))
    application = spark if is_connect(spark) else spark.sparkContext

    def run(function: Callable[..., Any], **kwargs: Any) -> Any:
        with queue_of(application).hold(runner.get_num_tasks(), gateway.slots):
            return runner.run(function, **kwargs)

    return run, runner
