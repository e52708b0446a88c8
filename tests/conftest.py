"""Fixtures for all tests: one Spark session per process, and a check of what each test leaves behind."""

import importlib.metadata
import os
import shutil
import sys
import tempfile
import threading

import pytest

# Tests kill processes, mainly JVMs, before these can clean up. In /tmp itself, their files would stay forever.
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="stfd-tests-")
tempfile.tempdir = None
# Let workers write the same files as on a user's cluster.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from helpers import QUICK_JVM, wait_until  # noqa: E402 (it passes this directory to JVMs)

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
# The machine's own name need not resolve, and nothing here is used from other machines.
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
# The options of drivers, and of Spark's masters and workers.
for name in ("SPARK_SUBMIT_OPTS", "SPARK_DAEMON_JAVA_OPTS"):
    os.environ.setdefault(name, QUICK_JVM)


def pytest_configure(config):
    # These leave their sockets open until garbage collection.
    if importlib.metadata.version("pyspark").startswith(("3.", "4.0.", "4.1.")):
        config.addinivalue_line("filterwarnings", "ignore:unclosed <socket:ResourceWarning")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from sharing import Scheduler

    return Scheduler(config, log)


_running: set[str] = set()


def pytest_runtest_logstart(nodeid):
    _running.add(nodeid)


def pytest_runtest_logfinish(nodeid):
    _running.discard(nodeid)


def pytest_terminal_summary(terminalreporter):
    for test in sorted(_running):  # in another process, of which an interruption shows no traceback
        terminalreporter.write_line(f"STILL RUNNING {test}")


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK:  # else keep the files for inspection
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def spark():
    """A local session with four slots."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[4]")
        .appName("tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Check that a test leaves the environment, the working directory and our threads as they were."""
    environment, folder = dict(os.environ), os.getcwd()
    yield
    own = "PYTEST_CURRENT_TEST"  # pytest changes its value
    assert {**os.environ, own: ""} == {**environment, own: ""}
    assert os.getcwd() == folder
    assert wait_until(lambda: not [t.name for t in threading.enumerate() if t.name.startswith("spark-tensorflow-")])
