"""Starts the Spark session of a command."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import ClusterError, ConfigurationError
from ..formatting import first_line, sentence
from ..runtime.driver.outcome import brief
from ..runtime.driver.spark import session_class
from .options import pairs
from .servers import check_answers

# If one of these is set, the environment already determines where Spark runs.
_CONFIGURED = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "SPARK_CONF_DIR", "SPARK_HOME", "SPARK_REMOTE")


def default_master(environment: Mapping[str, str], num_slots: int) -> str | None:
    """Return the master for a command that names none; None if spark-submit or the environment configures Spark."""
    return None if any(environment.get(name) for name in _CONFIGURED) else f"local[{num_slots}]"


@contextmanager
def session(options: Namespace, num_slots: int, *, is_quiet: bool = False) -> Iterator[Any]:
    """Start the session that the options describe, and stop it afterwards.

    Args:
        options: See :func:`~.options.add_session_options`.
        num_slots: Number of tasks that a local session must be able to run at once.
        is_quiet: Whether to hide Spark's warnings and show only its errors.

    Raises:
        ConfigurationError: Options contradict each other.
        ClusterError: PySpark is not installed, the master or server does not answer, or Spark does not start.
    """
    sessions = session_class()
    if options.master and options.remote:
        raise ConfigurationError("Both --master and --remote are given; choose one.")
    master = options.master or (None if options.remote else default_master(os.environ, num_slots))
    if (master or "").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # Spark's own default is the first python3 in PATH
    builder: Any = sessions.builder.appName("spark_tensorflow_distributor")
    if options.remote:
        builder = builder.remote(options.remote)
    elif master:
        builder = builder.master(master)
    settings = pairs(options.conf, "--conf")
    is_client = options.remote or (not options.master and os.environ.get("SPARK_REMOTE"))
    if not is_client:  # a Spark Connect client cannot set these
        settings.setdefault("spark.ui.showConsoleProgress", "false")  # Spark's bar would overwrite the training's
        if is_quiet:
            settings.setdefault("spark.log.level", "ERROR")
    for key, value in settings.items():
        builder = builder.config(key, value)
    server = (options.remote or os.environ.get("SPARK_REMOTE")) if is_client else master or settings.get("spark.master")
    check_answers(server)
    try:
        spark = builder.getOrCreate()
    except Exception as error:  # exceptions of many types, from the JVM or from the configuration
        raise ClusterError(_start_text(error, server or "")) from error
    try:
        yield spark
    finally:
        spark.stop()


def _start_text(error: Exception, server: str) -> str:
    reason = first_line(brief(str(error)), 500)
    if server.startswith("spark://") and "stopped SparkContext" in reason:  # Spark has given up after a minute
        return (
            f"Spark does not start: {server} accepts connections, but does not register the application. Check that "
            "--master is the URL on the master's web page (usually at port 8080), that the master has this Spark's "
            "version, and that both have the same security settings (spark.authenticate, spark.network.crypto.enabled)."
        )
    return f"Spark does not start: {sentence(reason)}"
