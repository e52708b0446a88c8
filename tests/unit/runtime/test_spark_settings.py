"""The settings in Spark's configuration, which a plan checks before anything is launched."""

from pathlib import Path

import pytest

from spark_tensorflow_distributor import ClusterError
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime import spark_settings
from spark_tensorflow_distributor.runtime.driver.plan import ClusterFacts, make_plan
from spark_tensorflow_distributor.runtime.spark_settings import (
    CLOSE_PORT,
    COLLECTIVES,
    DRIVER_PORT,
    IGNORE_SSL,
    KEYS,
    MAX_RESULT_SIZE,
    PORT_FILTER,
    PROTECTION,
    WARM_SECONDS,
    WARM_START,
    WORKER_NETWORK,
    WORKER_PORTS,
    SparkSettings,
    parse_settings,
)


def test_unset_and_empty_settings_have_their_defaults():
    assert parse_settings({}) == SparkSettings()
    assert parse_settings(dict.fromkeys(KEYS, " ")) == SparkSettings()


def test_every_setting_is_parsed():
    conf = {
        IGNORE_SSL: "True",
        WARM_START: "false",
        WARM_SECONDS: "0.5",
        DRIVER_PORT: "7078",
        WORKER_PORTS: "20000-20099 ",
        WORKER_NETWORK: " 10.0.0.0/8",
        COLLECTIVES: " Sockets ",
        PORT_FILTER: "FALSE",
        CLOSE_PORT: "false",
        PROTECTION: "Privacy",
        MAX_RESULT_SIZE: "512m",
    }
    assert set(conf) == set(KEYS)
    assert parse_settings(conf) == SparkSettings(
        ignores_encryption=True,
        warm_start=False,
        warm_seconds=0.5,
        driver_port=7078,
        worker_ports=(20000, 20100),
        worker_network="10.0.0.0/8",
        collectives="sockets",
        port_filter=False,
        closes_port=False,
        protection="privacy",
        max_result_bytes=512 << 20,
    )


def test_every_name_is_among_the_keys_and_in_the_documentation():
    """A setting of this library that is missing from KEYS would never be read."""
    names = {value for value in vars(spark_settings).values() if str(value).startswith("tensorflow.")}
    assert names - {"tensorflow.spark.distributor."} <= set(KEYS)
    text = (Path(__file__).parents[3] / "docs" / "reference" / "settings.md").read_text()
    assert [key for key in {*KEYS} - {MAX_RESULT_SIZE} if f"| `{key}` |" not in text] == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (IGNORE_SSL, "yes", "true or false"),
        (WARM_START, "1", "true or false"),
        (WARM_SECONDS, "-1", "a non-negative number"),
        (WARM_SECONDS, "inf", "a non-negative number"),
        (WARM_SECONDS, "5 min", "a non-negative number"),
        (DRIVER_PORT, "7078.5", "a port, at most 65535"),
        (DRIVER_PORT, "-1", "a port, at most 65535"),
        (DRIVER_PORT, "65536", "a port, at most 65535"),
        *((WORKER_PORTS, wrong, "a range of ports") for wrong in ("20000", "5-4", "0-10", "1-70000", "a-b")),
        (COLLECTIVES, "gloo", "auto, sockets or tensorflow"),
        (PORT_FILTER, "on", "true or false"),
        (CLOSE_PORT, "off", "true or false"),
        (PROTECTION, "none", "auto, integrity or privacy"),
        (MAX_RESULT_SIZE, "1x", "a size such as 1g"),
    ],
)
def test_a_plan_refuses_an_invalid_setting(key, value, expected):
    with pytest.raises(ClusterError, match=f"{key} is '{value}'; it must be {expected}"):
        make_plan(RunnerConfig(2, use_gpu=False), ClusterFacts({key: value}))


@pytest.mark.parametrize(("text", "size"), [("1g", 1 << 30), ("512m", 1 << 29), ("0", 0), ("64KB", 1 << 16), ("7", 7)])
def test_sizes(text, size):
    assert parse_settings({MAX_RESULT_SIZE: text}).max_result_bytes == size
