"""Runs in real Spark barrier tasks, with a stub in place of TensorFlow: values, errors, output, failures."""

import contextlib
import json
import os
import pickle
import signal
import sys
import time
import traceback

import pytest

import spark_tensorflow_distributor as std
from helpers import WORKER_PATH, OwnError, is_running, wait_until
from spark_tensorflow_distributor import MirroredStrategyRunner, TrainingFailedError
from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway
from spark_tensorflow_distributor.runtime.spark_settings import COLLECTIVES

ENV = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}


@pytest.fixture
def runner(spark):
    def make(num_slots=2, env=None, **options):
        options.setdefault("use_gpu", False)
        return MirroredStrategyRunner(num_slots=num_slots, spark=spark, env={**ENV, **(env or {})}, **options)

    return make


def test_returns_the_value_of_rank_0(runner):
    def train(base):
        return base + std.get_context().rank

    made = runner()
    assert made.run(train, base=10) == 10
    assert made.report.succeeded
    assert sorted(made.report.workers) == [0, 1]


def test_every_rank_has_its_context_and_cluster(runner, tmp_path):
    def train(folder):
        from pyspark import BarrierTaskContext

        context = std.get_context()
        gathered = BarrierTaskContext.get().allGather(str(context.rank))
        with open(f"{folder}/{context.rank}", "w") as file:
            json.dump([vars(context), gathered, json.loads(os.environ["TF_CONFIG"])], file)

    assert runner(3).run(train, folder=str(tmp_path)) is None
    written = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    cluster = written[0][2]["cluster"]
    for rank, (context, gathered, config) in enumerate(written):
        assert context["rank"] == context["local_rank"] == rank
        assert context["world_size"] == context["local_world_size"] == 3
        assert sorted(gathered) == ["0", "1", "2"]
        assert config["task"] == {"type": "worker", "index": rank}
        assert config["cluster"] == cluster
    assert len(set(cluster["worker"])) == 3


def test_spark_worker_and_driver_are_left_unchanged(runner, spark):
    def train():
        os.environ["LEFT_BEHIND"] = "1"
        import tensorflow

        return tensorflow.__version__

    assert runner().run(train) == "2.0-stub"

    def look(batches):
        import pyarrow as pa

        for _ in batches:
            seen = [name for name in ("TF_CONFIG", "LEFT_BEHIND", "CUDA_VISIBLE_DEVICES") if name in os.environ]
            seen += [name for name in ("tensorflow", "keras") if name in sys.modules]
            yield pa.RecordBatch.from_pydict({"seen": seen}, schema=pa.schema([("seen", pa.string())]))

    assert spark.range(0, 4, 1, 4).mapInArrow(look, "seen string").collect() == []
    assert "tensorflow" not in sys.modules or "stubs" not in str(sys.modules["tensorflow"].__file__)


def test_an_exception_keeps_its_type_and_names_its_rank(runner, capfd):
    def train():
        print("about to fail")
        if std.get_context().rank == 1:
            raise OwnError(7, "the data is bad")
        time.sleep(30)

    made = runner()
    started = time.monotonic()
    with pytest.raises(TrainingFailedError) as caught:
        made.run(train)
    assert time.monotonic() - started < 15
    error = caught.value
    assert isinstance(error.__cause__, OwnError)
    assert error.__cause__.code == 7
    assert error.root_cause.rank == 1
    assert "Rank 1 @" in str(error)
    assert "the data is bad" in str(error)
    assert "raise OwnError" in str(error)
    assert "about to fail" in str(error)
    assert "java" not in str(error)
    assert error.failures[0].kind == "stopped"
    assert not made.report.succeeded
    assert made.report.attempts[0].root_cause == 1
    assert "at org.apache" not in capfd.readouterr().err
    assert pickle.loads(pickle.dumps(error)).failures.keys() == error.failures.keys()


def test_the_traceback_leads_from_the_call_to_the_message(runner, caplog):
    """Between them, it has no frames but that of run() or result(); the log has the others."""

    def train():
        raise ValueError("no labels")

    def files_of(call):
        with pytest.raises(TrainingFailedError, match="no labels") as caught, caplog.at_level("DEBUG"):
            call()
        return [os.path.basename(frame.filename) for frame in traceback.extract_tb(caught.value.__traceback__)]

    assert files_of(lambda: runner().run(train)) == ["test_run.py", "test_run.py", "runner.py"]
    assert "tracked_run.py" in caplog.text
    handle = runner().submit(train)
    for _ in range(2):
        assert files_of(handle.result) == ["test_run.py", "handle.py"]


def test_failures_of_all_ranks_are_one_error(runner):
    def train():
        raise ValueError(f"rank {std.get_context().rank}")

    with pytest.raises(TrainingFailedError) as caught:
        runner(4).run(train)
    assert isinstance(caught.value.__cause__, ValueError)
    assert sorted(caught.value.failures) == [0, 1, 2, 3]
    assert {failure.kind for failure in caught.value.failures.values()} == {"exception"}


def test_a_local_exception_class_keeps_its_identity(runner):
    class LocalError(Exception):
        pass

    def train():
        raise LocalError("x")

    with pytest.raises(TrainingFailedError) as caught:
        runner().run(train)
    assert type(caught.value.__cause__) is LocalError


def test_sys_exit_is_a_failure(runner):
    with pytest.raises(TrainingFailedError, match=r"sys\.exit\(3\)") as caught:
        runner().run(lambda: sys.exit(3))
    assert caught.value.root_cause.kind == "exit"


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "most likely by the out-of-memory killer"), (signal.SIGSEGV, "crash in native code")],
)
def test_a_killed_trainer_is_explained(runner, number, words):
    def train():
        if std.get_context().rank == 1:
            os.kill(os.getpid(), number)
        time.sleep(30)

    with pytest.raises(TrainingFailedError, match=words) as caught:
        runner().run(train)
    assert caught.value.root_cause.rank == 1
    assert f"killed by signal {int(number)}" in str(caught.value)
    assert "peak RSS" in str(caught.value)
    if number == signal.SIGSEGV:
        assert any("Fatal Python error" in line for line in caught.value.root_cause.log_tail)


def test_os_exit_is_a_failure(runner):
    with pytest.raises(TrainingFailedError, match="exit status 9"):
        runner().run(lambda: os._exit(9))


def test_an_unpicklable_result_is_an_error(runner):
    import threading

    with pytest.raises(std.SerializationError, match=r"lock.*cannot be pickled"):
        runner().run(lambda: threading.Lock())


def test_a_result_larger_than_spark_allows_is_an_error(runner, spark):
    def train():
        return b"x" * ((1 << 30) + 1)

    with pytest.raises(std.SerializationError, match=r"spark\.driver\.maxResultSize"):
        runner().run(train)


def test_a_large_result_arrives(runner):
    value = runner().run(lambda: os.urandom(1) * (200 << 20))
    assert len(value) == 200 << 20


def test_a_result_that_the_driver_cannot_load_is_an_error(runner):
    def train():
        import types

        module = types.ModuleType("nowhere_here")
        exec("class Thing: pass", module.__dict__)
        sys.modules["nowhere_here"] = module
        return module.Thing()

    with pytest.raises(std.SerializationError, match="nowhere_here"):
        runner().run(train)


def test_a_missing_module_is_the_cause(runner):
    def train():
        import surely_not_installed  # noqa: F401

    with pytest.raises(TrainingFailedError, match="surely_not_installed") as caught:
        runner().run(train)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_the_driver_shows_the_output_of_all_workers(runner, capfd):
    def train():
        print("python")
        os.system("echo subprocess; echo error >&2")
        os.write(1, b"bytes \xff\xfe\n")
        print("ünïcode")
        print("no newline", end="")

    runner().run(train)
    out, err = capfd.readouterr()
    host = "localhost"
    for rank in (0, 1):
        for text in ("python", "subprocess", "bytes \\xff\\xfe", "ünïcode", "no newline"):
            assert f"[rank {rank} @ {host}] {text}\n" in out
        assert f"[rank {rank} @ {host}] error\n" in err


def test_output_is_shown_live(runner, capfd, tmp_path):
    proceed = tmp_path / "proceed"

    def train(path):
        print("first")
        while not os.path.exists(path):
            time.sleep(0.05)

    import threading

    made = runner(1)
    thread = threading.Thread(target=made.run, args=(train,), kwargs={"path": str(proceed)})
    thread.start()
    seen = []

    def has_arrived():
        seen.append(capfd.readouterr().out)
        return "first" in "".join(seen)

    assert wait_until(has_arrived, 20)
    proceed.touch()
    thread.join(20)
    assert not thread.is_alive()


def test_log_to_driver_false_shows_no_output(runner, capfd):
    made = runner(log_to_driver=False)
    made.run(lambda: print("quiet please"))
    assert "[rank" not in capfd.readouterr().out
    assert "quiet please" in made.report.workers[0].log_tail


def test_a_flood_of_output_does_not_block_training(runner, capfd):
    def train():
        line = "x" * 99 + "\n"
        for _ in range(2000):
            sys.stdout.write(line * 1000)
        return "survived"

    made = runner(1)
    assert made.run(train) == "survived"
    capfd.readouterr()
    assert made.report.workers[0].log_tail[-1] == "x" * 99


def test_a_taken_port_is_retried_in_the_same_attempt(runner, tmp_path, monkeypatch):
    """TensorFlow binds its port some time after it was chosen."""
    conf = SparkGateway.conf
    wanted = {COLLECTIVES: "tensorflow"}
    monkeypatch.setattr(SparkGateway, "conf", lambda self, name: wanted.get(name) or conf(self, name))
    made = runner(env={"STUB_TF_TAKE_PORT": str(tmp_path / "taken")})
    assert made.run(lambda: "met") == "met"
    assert len(made.report.attempts) == 2
    assert {attempt.attempt for attempt in made.report.attempts} == {0}


def test_restarts_until_max_restarts(runner, tmp_path):
    def train(folder):
        context = std.get_context()
        open(f"{folder}/{context.attempt}-{context.rank}", "w").close()
        if context.attempt < 2 and context.rank == 1:
            raise RuntimeError("not yet")
        return context.attempt

    assert runner(max_restarts=2).run(train, folder=str(tmp_path)) == 2
    assert len(os.listdir(tmp_path)) == 6
    with pytest.raises(TrainingFailedError, match="not yet"):
        runner(max_restarts=1).run(train, folder=str(tmp_path))


def test_a_stall_fails_the_run(runner):
    made = runner(stall_timeout=1.5)
    with pytest.raises(TrainingFailedError, match=r"stall_timeout=1\.5"):
        made.run(lambda: time.sleep(60))


def test_cancelling_all_jobs_ends_the_run(runner, spark, tmp_path):
    import threading

    def train(folder):
        open(f"{folder}/{os.getpid()}", "w").close()
        time.sleep(60)

    caught = []

    def go():
        try:
            runner(max_restarts=3).run(train, folder=str(tmp_path))
        except TrainingFailedError as error:
            caught.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    assert wait_until(lambda: len(os.listdir(tmp_path)) == 2, 30)
    spark.sparkContext.cancelAllJobs()
    thread.join(20)
    assert "cancelled" in str(caught[0])
    assert wait_until(lambda: not any(is_running(int(pid)) for pid in os.listdir(tmp_path)))
    assert spark.range(10).count() == 10


def test_the_callers_job_group_cancels_the_run(runner, spark, tmp_path):
    import threading

    def train(folder):
        open(f"{folder}/{os.getpid()}", "w").close()
        time.sleep(60)

    from pyspark import InheritableThread

    def go():
        spark.sparkContext.setJobGroup("mine", "my own description")
        with pytest.raises(TrainingFailedError, match="cancelled"):
            runner().run(train, folder=str(tmp_path))

    thread = InheritableThread(target=go)
    thread.start()
    assert wait_until(lambda: len(os.listdir(tmp_path)) == 2, 30)
    spark.sparkContext.cancelJobGroup("mine")
    thread.join(20)
    assert not thread.is_alive()
    assert threading.active_count() < 20


def test_child_processes_end_with_the_run(runner, tmp_path):
    def train(path):
        import subprocess

        child = subprocess.Popen(["sleep", "300"])
        with open(path, "w") as file:
            file.write(str(child.pid))

    path = tmp_path / "pid"
    runner(1).run(train, path=str(path))
    assert wait_until(lambda: not is_running(int(path.read_text())))


def test_exit_handlers_run(runner, tmp_path):
    def train(path):
        import atexit

        atexit.register(lambda: open(path, "w").close())

    runner(1).run(train, path=str(tmp_path / "done"))
    assert (tmp_path / "done").exists()


def test_random_seeds_differ_between_runs_but_not_between_workers(runner, tmp_path):
    def train(folder):
        import random

        import numpy

        from spark_tensorflow_distributor import get_context

        rank = get_context().rank
        open(f"{folder}/{random.random()}-{numpy.random.rand()}-{rank}", "w").close()

    for _ in range(2):
        runner().run(train, folder=str(tmp_path))
    drawn = [name.rpartition("-")[0] for name in os.listdir(tmp_path)]
    assert len(drawn) == 4
    assert len(set(drawn)) == 2


def test_a_script_runs_as_main(runner, tmp_path, capfd):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, os\n"
        "def main():\n"
        "    print('args', sys.argv[1:], __name__)\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
        "    sys.exit(0)\n"
    )
    assert runner().run(str(script), args=["--lr", "0.1"]) is None
    assert "[rank 1 @ localhost] args ['--lr', '0.1'] __main__" in capfd.readouterr().out
    script.write_text("def f():\n    raise KeyError('in script')\nf()\n")
    with pytest.raises(TrainingFailedError, match=r"line 2[\s\S]*raise KeyError\('in script'\)"):
        runner().run(script)


def test_a_cold_start(spark, runner):
    spark.conf.set("tensorflow.spark.distributor.warmStart", "false")
    try:
        assert runner().run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]) == ""
    finally:
        spark.conf.unset("tensorflow.spark.distributor.warmStart")


def test_an_unreachable_driver_falls_back_to_all_gather(runner, monkeypatch):
    from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway

    # No process listens at this address, as if behind a firewall that rejects connections.
    monkeypatch.setattr(SparkGateway, "channel_address", lambda self: ("127.0.0.1", ("127.0.0.9",)))
    made = runner()
    assert made.run(lambda: "done") == "done"
    assert {worker.rendezvous for worker in made.report.workers.values()} == {"allGather"}

    def train():
        if std.get_context().rank == 1:
            raise OwnError(3, "no channel")
        time.sleep(30)

    with pytest.raises(TrainingFailedError, match="no channel") as caught:
        made.run(train)
    assert isinstance(caught.value.__cause__, OwnError)


def test_a_lost_channel_does_not_disturb_training(runner, monkeypatch):
    from spark_tensorflow_distributor.runtime.driver import launch

    show = launch.Launch._show

    def cut(self, rank, kind, message):
        show(self, rank, kind, message)
        if kind == "log":
            for peer in list(self._channel._peers.values()):
                with contextlib.suppress(OSError):  # cut already, but not yet removed
                    peer._socket.shutdown(2)

    monkeypatch.setattr(launch.Launch, "_show", cut)

    def train():
        for i in range(5):
            print("line", i)
            time.sleep(0.5)
        return "trained"

    assert runner().run(train) == "trained"


def test_results_return_through_spark_without_a_channel(runner, monkeypatch):
    from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway

    monkeypatch.setattr(SparkGateway, "channel_address", lambda self: ("127.0.0.1", ("127.0.0.9",)))
    made = runner()
    assert len(made.run(lambda: os.urandom(1) * (100 << 20))) == 100 << 20
    with pytest.raises(std.SerializationError, match=r"driverPort"):
        made.run(lambda: os.urandom(1) * (200 << 20))


def test_start_timeout_does_not_end_workers_that_cannot_reach_the_driver(runner, monkeypatch):
    from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway

    monkeypatch.setattr(SparkGateway, "channel_address", lambda self: ("127.0.0.1", ("127.0.0.9",)))
    # Spark updates its count of running tasks with the executors' heartbeats, every ten seconds.
    assert runner(start_timeout=12).run(lambda: time.sleep(14) or "trained") == "trained"


@pytest.fixture
def for_rank_1(monkeypatch):
    """Replace ``socket.create_connection`` in the agent of rank 1."""
    from spark_tensorflow_distributor.runtime.driver import run

    task = run.spark_task

    def replace(substitute):
        def changed(*arguments):
            whole = task(*arguments)

            def body(batches):
                import socket

                from pyspark import BarrierTaskContext

                connect = socket.create_connection
                if BarrierTaskContext.get().partitionId() == 1:
                    socket.create_connection = substitute(connect)
                try:
                    yield from whole(batches)
                finally:
                    socket.create_connection = connect

            return body

        monkeypatch.setattr(run, "spark_task", changed)

    return replace


def test_one_worker_cannot_reach_the_driver(runner, for_rank_1):
    """If only rank 1 cannot reach the driver, all ranks join and end through Spark."""

    def refusing(connect):
        def refuse(address, *args, **kwargs):
            raise ConnectionRefusedError

        return refuse

    for_rank_1(refusing)
    made = runner(3)
    assert made.run(lambda: "all") == "all"
    assert {worker.rendezvous for worker in made.report.workers.values()} == {"allGather"}


def test_a_late_worker_costs_nobody_the_channel(runner, for_rank_1, monkeypatch):
    """The other ranks are already in allGather, where all report that they can reach the driver."""

    def late(connect):
        def wait(address, *args, **kwargs):
            import time

            time.sleep(4)
            return connect(address, *args, **kwargs)

        return wait

    monkeypatch.setattr("spark_tensorflow_distributor.runtime.driver.group.ALL_GATHER_SECONDS", 1.0)
    for_rank_1(late)
    made = runner(3)
    assert made.run(lambda: "all") == "all"
    assert {worker.rendezvous for worker in made.report.workers.values()} == {"channel"}


def test_an_encrypted_run(runner, monkeypatch, capfd):
    """The driver's channel carries output, a failure and a result; the workers of one host share memory."""
    conf, key = SparkGateway.conf, "spark.network.crypto.enabled"
    monkeypatch.setattr(SparkGateway, "conf", lambda self, name: "true" if name == key else conf(self, name))

    def train(fails):
        print("hello from a worker")
        if fails:
            raise OwnError(3, "encrypted")
        return os.urandom(1) * (3 << 20)

    assert len(runner().run(train, fails=False)) == 3 << 20
    assert "hello from a worker" in capfd.readouterr().out
    with pytest.raises(TrainingFailedError, match="encrypted"):
        runner().run(train, fails=True)
