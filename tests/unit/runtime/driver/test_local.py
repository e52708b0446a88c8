"""``local_mode`` without Spark and TensorFlow."""

import fcntl
import os
import resource
import sys
from types import ModuleType, SimpleNamespace

import pytest

from spark_tensorflow_distributor import (
    DistributorError,
    GpuConfigurationError,
    MirroredStrategyRunner,
    context,
    get_context,
)
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.data import intake, shard
from spark_tensorflow_distributor.resume.store import FolderStore
from spark_tensorflow_distributor.resume.writer import CheckpointWriter
from spark_tensorflow_distributor.runtime.driver.local import _shards, local_gpus


@pytest.fixture
def runner():
    return MirroredStrategyRunner(num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True)


def test_the_function_runs_here_and_the_environment_is_restored(runner):
    def train(x):
        os.environ["LEFT_BEHIND"] = "1"
        return x, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], get_context().world_size

    assert runner.run(train, x=3) == (3, os.getpid(), "", 1)
    assert "LEFT_BEHIND" not in os.environ
    with pytest.raises(DistributorError, match="only inside a training function"):
        get_context()


def test_errors_are_raised_unchanged(runner):
    with pytest.raises(ZeroDivisionError):
        runner.run(lambda: 1 / 0)


@pytest.fixture
def runner_with_folder(tmp_path):
    return MirroredStrategyRunner(
        num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True, checkpoint_dir=str(tmp_path)
    )


def count_to(end, stop_at=None):
    """Return a loop that resumes from its own checkpoints."""
    context = get_context()
    start = (context.latest_checkpoint() or {"step": 0})["step"]
    for step in range(start, end):
        if step == stop_at:
            raise InterruptedError
        context.save_checkpoint({"step": step + 1})
    return start


def test_checkpoints_are_kept_until_a_run_succeeds(runner_with_folder):
    with pytest.raises(InterruptedError):
        runner_with_folder.run(count_to, end=10, stop_at=6)
    assert runner_with_folder.run(count_to, end=10) == 6
    assert runner_with_folder.run(count_to, end=10) == 0
    assert context._checkpoints is None


def test_a_folder_keeps_no_fit_in_local_mode(runner_with_folder, caplog):
    runner_with_folder.run(count_to, end=0)
    (record,) = caplog.records
    assert "fit() itself is neither saved nor resumed" in record.getMessage()


def test_an_interruption_while_checkpoints_are_written_restores_the_context(runner_with_folder, monkeypatch):
    def interrupted(writer):
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner_with_folder.run(count_to, end=3)
    assert context._checkpoints is None


def test_a_checkpoint_that_cannot_be_written_is_reported(runner_with_folder, monkeypatch, caplog):
    def full(store, name, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderStore, "put", full)
    assert runner_with_folder.run(count_to, end=3) == 0
    assert "could not be written: OSError: [Errno 28] No space left on device" in caplog.text


def test_checkpoints_without_a_folder_are_warned_about_once(runner, caplog):
    runner.run(count_to, end=3)
    (record,) = caplog.records
    assert (record.levelname, "Set checkpoint_dir" in record.getMessage()) == ("WARNING", True)
    assert context._checkpoints is None


def test_without_checkpoints_there_is_no_warning(runner, caplog):
    runner.run(lambda: get_context().latest_checkpoint())
    assert not caplog.records


def test_a_script(runner, tmp_path, capsys):
    path = tmp_path / "train.py"
    path.write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n")
    before = sys.argv[:]
    assert runner.run(str(path), args=["--x", "1"]) is None
    assert capsys.readouterr().out == "['--x', '1']\n"
    assert sys.argv == before


def test_the_drivers_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = RunnerConfig(2, local_mode=True)
    assert local_gpus(config, ["0", "1", "2"]) == ("0", "1")
    with pytest.raises(GpuConfigurationError, match="the driver has 1"):
        local_gpus(config, ["0"])
    with pytest.raises(GpuConfigurationError, match=r"spark\.driver\.resource\.gpu\.amount"):
        local_gpus(config, None)


def test_own_modules_are_importable_and_read_anew(tmp_path):
    path = tmp_path / "module_of_local_mode.py"
    runner = MirroredStrategyRunner(
        num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True, py_modules=[path]
    )

    def train():
        import module_of_local_mode

        return module_of_local_mode.value

    before = list(sys.path)
    for value in (1, 22):
        path.write_text(f"value = {value}")
        assert runner.run(train) == value
    assert sys.path == before
    assert "module_of_local_mode" not in sys.modules


def test_descriptors_may_be_high_and_none_stays_open(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this machine limits the number of open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048 if hard == resource.RLIM_INFINITY else hard, hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1500)
    os.write(writer, b"ready")
    calls = []

    class Receiver:
        def __init__(self, *args, **options):
            self.fileno = lambda: high
            self.acknowledge = lambda: calls.append("acknowledged")
            self.layout = lambda: ([], [SimpleNamespace(fileno=lambda: reader)])
            self.close = lambda: calls.append("closed")

    def opened(layouts, files, shard_id):
        calls.append(len(files))
        for descriptor in files:
            os.close(descriptor)
        return {}

    monkeypatch.setattr(intake, "RowReceiver", Receiver)
    monkeypatch.setattr(shard, "open_shards", opened)
    frames = SimpleNamespace(specs=[1], local_batches=lambda: iter(()))
    try:
        # Without TensorFlow, nothing is left open.
        monkeypatch.setitem(sys.modules, "spark_tensorflow_distributor.data.store", None)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ImportError), _shards(frames):
            pass
        assert calls == ["acknowledged", "closed"]
        assert len(os.listdir("/proc/self/fd")) == before
        monkeypatch.setitem(sys.modules, "spark_tensorflow_distributor.data.store", ModuleType("store"))
        with _shards(frames) as found:
            assert found == {}
        assert calls[2:] == ["acknowledged", 1, "closed"]
    finally:
        for descriptor in (reader, writer, high):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
