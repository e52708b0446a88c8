import pytest

from spark_tensorflow_distributor.resume import memory


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Replace the files of Linux: the host has 8,000 KiB of free memory, and the container's files do not exist yet."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    files = [tmp_path / name for name in ("limit", "used", "statistics")]
    monkeypatch.setattr(memory, "_MEMINFO", str(meminfo))
    monkeypatch.setattr(memory, "_CGROUPS", (memory._Cgroup(*map(str, files), "inactive_file"),))
    return files


def write(files, *texts):
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)


def test_without_a_container_the_host_counts(cgroup):
    assert memory.available_memory() == 8000 << 10
    assert memory.total_memory() > 1 << 20
    write(cgroup, "max\n", "1000\n", "inactive_file 10\n")
    assert memory.available_memory() == 8000 << 10
    assert memory.total_memory() > 1 << 20


def test_the_limit_of_a_container_counts(cgroup):
    write(cgroup, "500000\n", "200000\n", "anon 1\ninactive_file 50000\n")
    assert memory.total_memory() == 500_000
    assert memory.available_memory() == 350_000  # the kernel drops inactive files when memory gets short
    write(cgroup, "500000\n", "600000\n", "inactive_file 0\n")
    assert memory.available_memory() == 0


def test_memory_that_is_not_known(cgroup, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", "/nowhere")
    assert memory.available_memory() is None
