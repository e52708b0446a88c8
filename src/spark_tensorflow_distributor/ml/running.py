"""Runs a training when there is room for it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..config import renamed_arguments
from ..errors import DistributorError, TrainingFailedError
from ..runner import MirroredStrategyRunner
from ..runtime.driver.spark import SparkGateway, is_connect
from .params import RUNNER_ARGUMENTS
from .slots import queue_of

# Arguments whose names are ordinary words, such as env, would be found in sentences where they mean something else.
_PARAMS = {argument: name for name, argument in RUNNER_ARGUMENTS.items() if "_" in argument}


def waiting_runner(spark: Any, arguments: Mapping[str, Any]) -> tuple[Callable[..., Any], MirroredStrategyRunner]:
    """Return a runner, and a function like its ``run`` that first waits for the other trainings of this application.

    Args:
        spark: The session.
        arguments: The runner's other arguments.
    """
    with naming_params():
        runner = MirroredStrategyRunner(spark=spark, **arguments)
    if arguments["local_mode"]:
        return runner.run, runner
    gateway = SparkGateway(spark, arguments.get("resource_profile"))
    application = spark if is_connect(spark) else spark.sparkContext

    def run(function: Callable[..., Any], **kwargs: Any) -> Any:
        with naming_params(), queue_of(application).hold(runner.get_num_tasks(), gateway.slots):
            return runner.run(function, **kwargs)

    return run, runner


@contextlib.contextmanager
def naming_params() -> Iterator[None]:
    """Let errors of the runner name the Params instead of its arguments."""
    try:
        yield
    except DistributorError as error:
        if not isinstance(error, TrainingFailedError):  # which quotes the user's functions
            error.args = tuple(
                renamed_arguments(each, _PARAMS) if isinstance(each, str) else each for each in error.args
            )
        for number, note in enumerate(getattr(error, "__notes__", [])):
            error.__notes__[number] = renamed_arguments(note, _PARAMS)
        raise
