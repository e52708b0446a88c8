"""Files below the workers' log_dir appear below the driver's, with a stub in place of TensorFlow."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import spark_tensorflow_distributor as std
from helpers import WORKER_PATH, wait_until
from spark_tensorflow_distributor import MirroredStrategyRunner
from spark_tensorflow_distributor.runtime.driver.channel import Channel

ENV = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}


@pytest.fixture
def run(spark, tmp_path):
    """Return a function that runs a training function with a log_dir, and returns its value and the report."""

    def start(train, num_slots=2, **options):
        made = MirroredStrategyRunner(
            num_slots=num_slots, spark=spark, env=ENV, use_gpu=False, log_dir=tmp_path / "logs", **options
        )
        try:
            return made.run(train, driver=str(tmp_path / "logs")), made.report
        finally:
            assert list(Path(os.environ["TMPDIR"]).rglob("spark-tensorflow-logs-*")) == []

    return start


def test_files_appear_while_they_are_written_and_are_whole_at_the_end(run, tmp_path):
    def train(driver):
        import atexit
        import os
        import time
        from pathlib import Path

        context = std.get_context()
        folder = Path(context.log_dir)

        def appears(name, text):
            end = time.monotonic() + 30
            while time.monotonic() < end:
                if Path(driver, name).exists() and Path(driver, name).read_text() == text:
                    return True
                time.sleep(0.05)
            return False

        if context.rank == 1:
            (folder / "log").write_text("of rank 1")
            (folder / "rank1").mkdir()
            (folder / "rank1" / "large").write_bytes(b"x" * (30 << 20))
            return None
        (folder / "log").write_text("first\n")
        seen = [appears("log", "first\n")]
        with open(folder / "log", "a") as file:
            file.write("second\n")
        seen.append(appears("log", "first\nsecond\n"))
        (folder / "log").write_text("anew\n")
        seen.append(appears("log", "anew\n"))
        os.symlink("/etc/passwd", folder / "link")
        atexit.register(lambda: (folder / "late").write_text("from an exit handler"))
        return seen, str(folder)

    (seen, folder), report = run(train)
    assert seen == [True, True, True]
    found = {str(path.relative_to(tmp_path / "logs")): path.stat().st_size for path in _files(tmp_path / "logs")}
    assert found == {"log": 5, "log.rank1": 9, "rank1/large": 30 << 20, "late": 20}
    assert not os.path.exists(folder)
    assert not [text for worker in report.workers.values() for text in worker.warnings if "log_dir" in text]


def _files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_killed_trainer_leaves_whole_files_and_its_successor_keeps_them(run, tmp_path):
    def train(driver):
        import os
        import time
        from pathlib import Path

        context = std.get_context()
        Path(context.log_dir, "log").write_text(f"rank {context.rank} attempt {context.attempt}\n" * 100_000)
        if context.attempt == 0:
            if context.rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)  # so early that nothing can have been sent
            time.sleep(300)

    _, report = run(train, max_restarts=1)
    assert len(report.attempts) == 2
    text = {path.name: path.read_text() for path in _files(tmp_path / "logs")}
    assert text == {
        "log.attempt0": "rank 0 attempt 0\n" * 100_000,
        "log.rank1": "rank 1 attempt 0\n" * 100_000,
        "log": "rank 0 attempt 1\n" * 100_000,
        "log.rank1_": "rank 1 attempt 1\n" * 100_000,
    }


def test_files_survive_lost_connections(run, tmp_path, monkeypatch):
    """The driver closes every connection several times while large files travel."""
    made = []
    original = Channel.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Channel, "__init__", init)

    def train(driver):
        import time
        from pathlib import Path

        context = std.get_context()
        with open(Path(context.log_dir, f"log{context.rank}"), "wb") as file:
            for n in range(40):
                file.write(bytes([n]) * 500_000)
                file.flush()
                time.sleep(0.1)

    def cut():
        assert wait_until(lambda: made, 60)
        for _ in range(4):
            wait_until(lambda: _files(tmp_path / "logs"), 60)
            time.sleep(0.8)
            for peer in list(made[0]._peers.values()):
                with contextlib.suppress(OSError):  # cut already, but not yet removed
                    peer._socket.shutdown(2)

    thread = threading.Thread(target=cut)
    thread.start()
    run(train)
    thread.join()
    expected = b"".join(bytes([n]) * 500_000 for n in range(40))
    assert {path.name: path.read_bytes() == expected for path in _files(tmp_path / "logs")} == {
        "log0": True,
        "log1": True,
    }


def test_an_unreachable_driver_is_a_warning(run, tmp_path, monkeypatch):
    original = Channel.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.addresses = (("127.0.0.1", 1),)

    monkeypatch.setattr(Channel, "__init__", init)

    def train(driver):
        with open(f"{std.get_context().log_dir}/log", "w") as file:
            file.write("lost")

    _, report = run(train)
    assert any("the executors cannot reach the driver" in text for text in report.workers[0].warnings)
    assert _files(tmp_path / "logs") == []


def test_local_mode_writes_to_the_directory_itself(spark, tmp_path):
    runner = MirroredStrategyRunner(
        num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True, log_dir=tmp_path / "new"
    )
    assert runner.run(lambda: std.get_context().log_dir) == str(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
