"""Root causes, restarts and error messages."""

import traceback

import pytest

from spark_tensorflow_distributor import (
    ClusterError,
    DataError,
    GpuConfigurationError,
    RendezvousError,
    RendezvousTimeoutError,
    SerializationError,
    TrainingFailedError,
    WorkerDataError,
)
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.driver.launch import LaunchResult
from spark_tensorflow_distributor.runtime.driver.outcome import (
    RestartPolicy,
    brief,
    error_of,
    lost_a_port,
    root_cause,
    stopped_session_error,
    was_ended_by_spark,
)
from spark_tensorflow_distributor.runtime.failures import Failure
from spark_tensorflow_distributor.runtime.process_tools import INSTALL_IT
from spark_tensorflow_distributor.runtime.specs import WorkerReport

CONFIG = RunnerConfig(2, use_gpu=False)
UNAVAILABLE = {"error_type": "tensorflow.python.framework.errors_impl.UnavailableError"}


def failure(rank, kind="exception", message="boom", seconds=0.0, **more):
    return Failure(rank, f"h{rank}", kind, message, seconds=seconds, **more)


def pickled(error):
    return Failure.from_exception(0, "h0", "exception", error).pickled


def test_the_root_cause_is_the_first_independent_failure():
    failures = {
        0: failure(0, message="failed to connect to all addresses", seconds=1.0, **UNAVAILABLE),
        1: failure(1, "signal", "killed", seconds=1.2),
        2: failure(2, "stopped", seconds=0.5),
    }
    assert root_cause(failures) == 1
    assert root_cause({0: failures[0], 2: failures[2]}) == 0
    assert root_cause({}) is None


def test_a_users_own_connection_error_is_a_cause():
    reset = failure(0, message="Connection reset by peer", seconds=1.0, error_type="OSError")
    failures = {0: reset, 1: failure(1, seconds=2.0)}
    assert root_cause(failures) == 0


def test_errors_of_workers_cannot_control_the_terminal():
    attack = "\x1b]0;title\x07"
    details = {"traceback": f"Traceback\n{attack}", "log_tail": (f"last {attack}\nforged",)}

    def failed(error):
        return error_of(
            LaunchResult(failures={0: failure(0, message=attack, pickled=pickled(error), **details)}), CONFIG, 1
        )

    error = failed(ValueError(attack))
    assert isinstance(error.__cause__, ValueError)
    cause = error.root_cause
    texts = [*traceback.format_exception(error), cause.message, cause.traceback, *cause.log_tail]
    assert all("\x1b" not in text and "\x07" not in text for text in texts)
    assert failed(SyntaxError("bad", ("file", 1, 1, attack))).__cause__ is None


def test_the_original_exception_is_chained():
    details = {"pickled": pickled(KeyError("k")), "traceback": "Traceback...", "log_tail": ("last words",)}
    failures = {1: failure(1, seconds=3.0, **details), 0: failure(0, "stopped", seconds=4.0)}
    error = error_of(LaunchResult(failures=failures), CONFIG, 2)
    assert isinstance(error, TrainingFailedError)
    assert isinstance(error.__cause__, KeyError)
    assert error.root_cause.rank == 1
    for words in ("Rank 1 @ h1 failed after 3.0 s: boom", "Traceback...", "last words"):
        assert words in str(error)
    assert "Ranks" not in str(error)


def test_an_exception_that_cannot_be_rebuilt_is_reported_as_text():
    error = error_of(LaunchResult(failures={0: failure(0, pickled="bm9wZQ==")}), CONFIG, 2)
    assert error.__cause__ is None
    assert "boom" in str(error)


def test_the_librarys_own_errors_are_raised_unchanged():
    own = failure(0, "startup", pickled=pickled(GpuConfigurationError("no GPU")))
    error = error_of(LaunchResult(failures={0: own}), CONFIG, 2)
    assert type(error) is GpuConfigurationError


def test_a_missing_tensorflow_and_another_missing_module():
    def failed(name):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        missing = Failure.from_exception(0, "h0", "startup", error)
        return error_of(LaunchResult(failures={0: missing}), CONFIG, 2)

    assert type(failed("tensorflow")) is ClusterError
    text = (
        "TensorFlow cannot be imported by the executors' Python: ModuleNotFoundError: No module named 'tensorflow' on"
    )
    assert str(failed("tensorflow")).startswith(f"{text} rank 0 @ h0. {INSTALL_IT}")
    assert str(failed("keras.applications")).startswith("Keras cannot be imported by the executors' Python: ")
    assert type(failed("mine")) is SerializationError
    assert "addPyFile" in str(failed("mine"))


def test_advice_for_a_module_that_the_driver_has(tmp_path, monkeypatch):
    (tmp_path / "helpers_of_mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind, cls in [("startup", SerializationError), ("exception", TrainingFailedError)]:
        error = ModuleNotFoundError("No module named 'helpers_of_mine'", name="helpers_of_mine")
        found = Failure.from_exception(0, "h0", kind, error)
        raised = error_of(LaunchResult(failures={0: found}), CONFIG, 2)
        assert type(raised) is cls
        assert "py_modules=['helpers_of_mine']" in str(raised)


def test_ranks_that_fail_alike_are_said_once():
    def text(*failures):
        return str(error_of(LaunchResult(failures={each.rank: each for each in failures}), CONFIG, 3))

    alike = [failure(rank, message=f"boom at 0x7f{rank}") for rank in range(3)]
    assert text(*alike).endswith("All 3 ranks failed with this error.")
    assert text(*alike).count("boom") == 1
    assert text(*alike[:2]).endswith("Rank 1 failed with the same error.")
    other = failure(2, message="crash")
    assert text(*alike[:2], other).endswith(
        "Rank 1 failed with the same error. Rank 2 failed with other errors; see this error's .failures."
    )
    assert "failed" not in text(alike[0], failure(1, "stopped")).partition(":")[2]


def test_a_frame_without_rows():
    error = error_of(LaunchResult(frames=("train_data",)), CONFIG, 2)
    assert type(error) is DataError
    assert str(error).startswith("The DataFrame 'train_data' has no rows.")
    own = RuntimeError("of the DataFrame's plan")
    assert error_of(LaunchResult(frames=("train_data",), spark_error=own), CONFIG, 2) is own


def test_a_session_that_was_stopped():
    ended = LaunchResult(spark_error=RuntimeError("Job 1 cancelled because SparkContext was shut down"), seconds=7.4)
    assert was_ended_by_spark(ended)
    assert "The SparkSession was stopped during the run, after 7 s" in str(stopped_session_error(ended))
    assert not was_ended_by_spark(LaunchResult(failures={0: failure(0)}, spark_error=RuntimeError()))
    assert was_ended_by_spark(LaunchResult(failures={0: failure(0, "peer")}, spark_error=RuntimeError()))


def test_start_timeout():
    error = error_of(LaunchResult(start_timed_out=1), CONFIG, 2)
    assert type(error) is RendezvousTimeoutError
    assert "1 of 2 workers connected within start_timeout=600 s" in str(error)


def test_a_lost_executor_is_reported_without_a_java_stack_trace():
    spark = RuntimeError(
        "An error occurred while calling o231.getResult.\n: org.apache.spark.SparkException: Job aborted: Could not "
        "recover from a failed barrier ResultStage.\n\tat org.apache.spark.X.y(X.scala:1)\n"
        "Caused by: java.lang.Error"
    )
    result = LaunchResult(spark_error=spark, reports={0: WorkerReport(0, "h0", 0)})
    error = error_of(result, CONFIG, 2)
    assert isinstance(error, TrainingFailedError)
    assert "Could not recover" in str(error)
    assert "[1]" in str(error)
    assert "X.scala" not in str(error)
    assert "getResult" not in str(error)
    assert "was lost" in str(error).splitlines()[0]  # the line that a relaunch logs
    assert "run: org.apache" in str(error)


def failed(place=None, message="boom", kind="exception", error_type="ValueError"):
    """The error of an attempt in which rank 1's function raised."""
    found = failure(1, kind, message, error_type=error_type, place=place or {})
    return error_of(LaunchResult(failures={1: found}), CONFIG, 2)


def test_only_transient_failures_are_restarted():
    assert RestartPolicy(1).pause(TrainingFailedError("x")) == 1
    assert RestartPolicy(1).pause(RendezvousError("the driver was lost while the workers were joining")) == 1
    assert RestartPolicy(0).pause(TrainingFailedError("x")) is None
    assert RestartPolicy(1).pause(SerializationError("x")) is None
    assert RestartPolicy(1).pause(WorkerDataError("a null in a column")) is None
    cancelled = error_of(LaunchResult(spark_error=RuntimeError("cancelled"), cancelled=True), CONFIG, 2)
    assert RestartPolicy(1).pause(cancelled) is None


def test_different_calls_are_final_unless_the_driver_may_have_caused_them():
    error = failed(message="Rank 0 is in fit", error_type="x.OutOfStepError")
    assert RestartPolicy(1).pause(error) is None
    assert RestartPolicy(1).pause(error, calls_were_lost=True) == 1


def test_the_pauses_grow_until_the_restarts_are_used_up():
    policy, error = RestartPolicy(8), TrainingFailedError("lost")
    assert [policy.pause(error) for _ in range(9)] == [1, 2, 4, 8, 16, 30, 30, 30, None]
    assert "max_restarts=8" in error.__notes__[-1]


def test_the_same_exception_twice_at_the_same_step_is_final():
    policy = RestartPolicy(5)
    at = {"fit": 0, "epoch": 2, "step": 17}
    assert policy.pause(failed(at, "boom at 0x7f01")) == 1
    again = failed(at, "boom at 0x7f99")
    assert policy.pause(again) is None
    assert "the same exception twice at the same step (epoch 3, after step 17)" in again.__notes__[-1]


@pytest.mark.parametrize(
    "second",
    [
        {"place": {"fit": 0, "epoch": 2, "step": 18}},
        {"message": "another"},
        {"error_type": "OSError"},
        {"kind": "signal"},
    ],
)
def test_a_different_exception_or_step_is_retried(second):
    at = {"fit": 0, "epoch": 2, "step": 17}
    policy = RestartPolicy(5)
    assert policy.pause(failed(at)) == 1
    assert policy.pause(failed(**{"place": at, **second})) == 2


def test_outside_fit_only_programming_errors_are_final():
    policy = RestartPolicy(5)
    assert [policy.pause(failed(None, error_type="OSError")) for _ in range(2)] == [1, 2]
    policy = RestartPolicy(5)
    assert [policy.pause(failed(None, error_type="NameError")) for _ in range(2)] == [1, None]


def test_a_process_killed_twice_at_the_same_step_is_retried():
    at = {"fit": 0, "epoch": 2, "step": 17}
    policy = RestartPolicy(5)
    assert [policy.pause(failed(at, kind="signal")) for _ in range(3)] == [1, 2, 4]


def test_a_taken_port_is_retried_with_new_ports():
    result = LaunchResult(failures={0: failure(0, "port", seconds=1.0), 1: failure(1, "stopped", seconds=0.9)})
    assert lost_a_port(result, 0)
    assert not lost_a_port(result, 3)
    assert not lost_a_port(LaunchResult(failures={0: failure(0)}), 0)


@pytest.mark.parametrize("size", [10, 5000, 100_000])
def test_a_failure_survives_sparks_error_text(size):
    sent = failure(1, message="m" * size, traceback="t" * size, log_tail=("l" * size,), pickled="p" * size)
    text = f"Job aborted due to stage failure: Task 1 failed\n{sent.to_spark_error()}\n\tat org.apache.spark.X"
    back = Failure.from_spark_error(text)
    assert len(text) < 25_000
    assert back.rank == 1
    assert back.message == ("m" * size)[:4000]
    assert Failure.from_spark_error("no failure here") is None


def test_a_workers_lost_peer_is_not_the_cause():
    failures = {
        0: failure(0, "peer", "The connection to rank 1 was lost", seconds=1.0),
        1: failure(1, "signal", seconds=1.2),
    }
    assert root_cause(failures) == 1
    assert root_cause({0: failures[0]}) == 0


def test_workers_that_make_different_calls_are_not_launched_again():
    kind = "spark_tensorflow_distributor.process_group.group.OutOfStepError"
    result = LaunchResult(failures={0: failure(0, message="The workers are in different operations", error_type=kind)})
    error = error_of(result, RunnerConfig(2, use_gpu=False, max_restarts=3), 2)
    assert isinstance(error, TrainingFailedError)
    assert RestartPolicy(3).pause(error) is None
    assert "different calls in every attempt" in error.__notes__[0]


@pytest.mark.parametrize(
    "text",
    [
        "PySparkRuntimeError: [CONTEXT_ONLY_VALID_ON_DRIVER] It appears that",
        "SparkRuntimeException: [NO_ACTIVE_SESSION] No active Spark session found.",
        "AssertionError\n    assert SparkContext._active_spark_context is not None",
    ],
)
def test_a_function_that_uses_spark_on_a_worker_gets_advice(text):
    message, _, line = text.partition("\n")
    cause = failure(0, message=message, traceback=f"Traceback (most recent call last):\n{line}\n{message}")
    advice = "Pass a DataFrame to run() as a keyword argument, and the function receives its rows"
    assert advice in str(error_of(LaunchResult(failures={0: cause}), CONFIG, 2))
    cause = failure(0, message="AssertionError", traceback="assert context is not None")
    assert advice not in str(error_of(LaunchResult(failures={0: cause}), CONFIG, 2))


def test_java_frames_are_left_out_in_either_form():
    frames = ["\tat org.apache.spark.A.b(A.scala:128)", "org.apache.spark.A$$anon$3.<init>(A.scala:59)"]
    frames += ["java.base/jdk.internal.reflect.B.invoke0(Native Method)", "\t... 3 more"]
    assert brief("\n".join(["what happened (A.scala:128) here", *frames])) == "what happened (A.scala:128) here"
