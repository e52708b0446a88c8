"""A master or server that does not answer, without Spark."""

import json
import socket

import pytest

from spark_tensorflow_distributor import ClusterError
from spark_tensorflow_distributor.cli import main as command
from spark_tensorflow_distributor.cli import spark as module
from spark_tensorflow_distributor.cli.servers import check_answers


@pytest.fixture
def closed():
    """Return the port of an address that refuses connections, because its socket does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_one_of_several_masters_is_enough(closed):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check_answers(f"spark://127.0.0.1:{closed},127.0.0.1:{port}")
        check_answers(f"sc://127.0.0.1:{port}/;token=abc")
    with pytest.raises(ClusterError) as caught:
        check_answers(f"spark://127.0.0.1:{closed},[::1]:{closed}")
    text = str(caught.value)
    assert f"No Spark master answers at spark://127.0.0.1:{closed},[::1]:{closed} (127.0.0.1 port {closed}: " in text
    assert f"; ::1 port {closed}: " in text
    assert "--master is the URL on its web page" in text


def test_a_server_of_spark_connect(closed):
    with pytest.raises(ClusterError) as caught:
        check_answers(f"sc://127.0.0.1:{closed}/;token=abc", {})
    assert f"No Spark Connect server answers at sc://127.0.0.1:{closed} (127.0.0.1 port" in str(caught.value)
    assert "abc" not in str(caught.value)
    check_answers(f"sc://127.0.0.1:{closed}", {"HTTPS_PROXY": "http://proxy:3128"})


@pytest.mark.parametrize("url", [None, "local[2]", "yarn", "k8s://https://h:1", "spark://h", "spark://h:x", "sc://"])
def test_other_urls_are_left_to_spark(url):
    check_answers(url)


@pytest.mark.parametrize("words", [("--master",), ("--conf",)])
def test_the_commands_say_that_no_master_answers(closed, words, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyspark")
    monkeypatch.chdir(tmp_path)
    url = f"spark://127.0.0.1:{closed}"
    where = ["--master", url] if words == ("--master",) else ["--conf", f"spark.master={url}"]
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))  # so that --conf alone decides
    assert command.main(["doctor", *where, "--num-slots", "2", "--cpu"]) == 1
    printed = capsys.readouterr().out
    assert printed.index("Driver\n") < printed.index(f"problem  ClusterError: No Spark master answers at {url} (")
    assert printed.endswith("A run with num_slots=2 on CPUs would not start: 1 problem(s), see above.\n")
    assert command.main(["doctor", *where, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["would_start"], found["config"]) == (False, "all slots on GPUs")
    assert command.main(["run", *where, "--num-slots", "2", "--cpu", __file__]) == 1
    assert capsys.readouterr().err.startswith(f"ClusterError: No Spark master answers at {url} (")


def test_a_failure_to_start_is_told_without_javas_stack():
    error = RuntimeError(
        "An error occurred while calling None.org.apache.spark.sql.classic.SparkSession.\n"
        ": java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\n"
        "This stopped SparkContext was created at:\n\n"
        "org.apache.spark.api.java.JavaSparkContext.<init>(JavaSparkContext.scala:59)\n"
        "\tat org.apache.spark.SparkContext.assertNotStopped(SparkContext.scala:128)\n"
    )
    stopped = "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext."
    assert module._start_text(error, "yarn") == f"Spark does not start: {stopped}"
    assert "spark://h:1 accepts connections, but does not register" in module._start_text(error, "spark://h:1")
