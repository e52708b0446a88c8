"""What a probe reports of the network and of TensorFlow, in a time that is limited."""

import socket
import time
from types import SimpleNamespace

import pytest

from spark_tensorflow_distributor.cli import probe


def test_connections_that_are_blocked_cost_one_timeout_together(monkeypatch):
    def create_connection(address, timeout):
        if address[0] == "blocked":
            time.sleep(timeout)
            raise TimeoutError
        return socket.socket()

    monkeypatch.setattr(probe, "_CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(probe.socket, "create_connection", create_connection)
    members = [["blocked", 1], ["free", 2], [], ["blocked", 3], ["free", 4], *(["blocked", each] for each in range(9))]
    began = time.monotonic()
    found = probe._unreachable(1, members)
    assert time.monotonic() - began < 1.0
    assert found == ["blocked:3", *(f"blocked:{each}" for each in range(9)), "blocked:1"]
    assert probe._connectable([]) == []


def test_an_import_that_takes_too_long_is_reported():
    spec = {"env": {}, "gpu_resource_name": "gpu", "gpus": [], "import_seconds": 0.01}
    assert probe._tensorflow(spec, 0, {}) == {
        "error": "The import has not ended after 0.01 s. Pass a longer --timeout."
    }


@pytest.mark.parametrize(
    ("of_host", "of_run", "selected"),
    [("0", {}, "keras"), ("True", {}, "tf_keras"), ("0", {"TF_USE_LEGACY_KERAS": "true"}, "tf_keras")],
)
def test_the_probe_says_which_keras_the_workers_would_use(monkeypatch, of_host, of_run, selected):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", of_host)
    done = SimpleNamespace(returncode=0, stdout='noise\n{"version": "2.21.0"}\n', stderr="")
    monkeypatch.setattr(probe.subprocess, "run", lambda *_, **__: done)
    spec = {"env": of_run, "gpu_resource_name": "gpu", "gpus": [], "import_seconds": 60}
    assert probe._tensorflow(spec, 0, {}) == {"version": "2.21.0", "selected_keras": selected}
    done.returncode, done.stderr = 1, "a\nImportError: b\n"
    assert probe._tensorflow(spec, 0, {}) == {"error": "ImportError: b"}
