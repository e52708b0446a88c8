import signal

import pytest

from spark_tensorflow_distributor.runtime.agent.process import explain_exit


@pytest.mark.parametrize(
    ("code", "kind", "short", "words"),
    [
        (3, "exit", "exit status 3", "before the function returned"),
        (-signal.SIGKILL, "signal", "killed by signal 9 (SIGKILL)", "most likely by the out-of-memory killer"),
        (-signal.SIGSEGV, "signal", "killed by signal 11 (SIGSEGV)", "a crash in native code"),
        (-signal.SIGTERM, "signal", "killed by signal 15 (SIGTERM)", "sent by another process"),
        (-99, "signal", "killed by signal 99 (unknown)", "sent by another process"),
    ],
)
def test_exits(code, kind, short, words):
    found = explain_exit(code, 3 << 30)
    assert found[:2] == (kind, short)
    assert words in found[2]
    assert "peak RSS 3.0 GiB" in found[2]
    assert "peak RSS unknown" in explain_exit(code, 0)[2]
