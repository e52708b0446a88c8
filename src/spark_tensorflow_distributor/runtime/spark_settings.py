"""Parses the settings in Spark's configuration that a run reads. Pure; docs/reference/settings.md describes them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from ..errors import ClusterError

_PREFIX = "tensorflow.spark.distributor."
IGNORE_SSL = f"{_PREFIX}ignoreSsl"
WARM_START = f"{_PREFIX}warmStart"
WARM_SECONDS = f"{_PREFIX}warmSeconds"
DRIVER_PORT = f"{_PREFIX}driverPort"
WORKER_PORTS = f"{_PREFIX}workerPorts"
WORKER_NETWORK = f"{_PREFIX}workerNetwork"
COLLECTIVES = f"{_PREFIX}collectives"
PORT_FILTER = f"{_PREFIX}portFilter"
CLOSE_PORT = f"{_PREFIX}closePort"
PROTECTION = f"{_PREFIX}protection"
MAX_RESULT_SIZE = "spark.driver.maxResultSize"

KEYS = (
    IGNORE_SSL, WARM_START, WARM_SECONDS, DRIVER_PORT, WORKER_PORTS, WORKER_NETWORK, COLLECTIVES, PORT_FILTER,
    CLOSE_PORT, PROTECTION, MAX_RESULT_SIZE,
)  # fmt: skip

CollectivesSetting: TypeAlias = Literal["auto", "sockets", "tensorflow"]
ProtectionSetting: TypeAlias = Literal["auto", "integrity", "privacy"]

_Choice = TypeVar("_Choice", bound=str)
_UNITS = {"": 0, "b": 0, "k": 1, "kb": 1, "m": 2, "mb": 2, "g": 3, "gb": 3, "t": 4, "tb": 4, "p": 5, "pb": 5}


@dataclass(frozen=True)
class SparkSettings:
    """The parsed settings; their defaults are those of unset ones.

    Attributes:
        ignores_encryption: Whether to ignore Spark's encryption settings.
        warm_start: Whether executors keep a process with TensorFlow loaded for later launches.
        warm_seconds: How long such a process waits for a launch, in seconds.
        driver_port: The port on which the driver listens for its workers; 0 for any free one.
        worker_ports: The first port for workers, and the last plus one; empty for any free ones.
        worker_network: The network that connects the workers, an interface or a subnet; "" to use Spark's.
        collectives: What carries the collectives.
        port_filter: Whether the ports of TensorFlow's runtime are closed to hosts outside the group.
        closes_port: Whether the listening port of TensorFlow's runtime is closed once the workers are connected.
        protection: How traffic between hosts is protected.
        max_result_bytes: The largest value that a run may return, in bytes; 0 for no limit.
    """

    ignores_encryption: bool = False
    warm_start: bool = True
    warm_seconds: float = 300.0
    driver_port: int = 0
    worker_ports: tuple[int, ...] = ()
    worker_network: str = ""
    collectives: CollectivesSetting = "auto"
    port_filter: bool = True
    closes_port: bool = True
    protection: ProtectionSetting = "auto"
    max_result_bytes: int = 1 << 30


def parse_settings(conf: Mapping[str, str]) -> SparkSettings:
    """Return the settings in Spark's configuration.

    ``workerNetwork`` is not checked here: only a worker can compare it with the networks of its host.

    Raises:
        ClusterError: A setting is invalid.
    """
    conf = {key: value.strip() for key, value in conf.items() if value.strip()}  # an empty setting is an unset one
    return SparkSettings(
        ignores_encryption=boolean(conf, IGNORE_SSL),
        warm_start=boolean(conf, WARM_START, default=True),
        warm_seconds=_seconds(conf.get(WARM_SECONDS, "300"), WARM_SECONDS),
        driver_port=_port(conf.get(DRIVER_PORT, "0"), DRIVER_PORT),
        worker_ports=_ports(conf.get(WORKER_PORTS, ""), WORKER_PORTS),
        worker_network=conf.get(WORKER_NETWORK, ""),
        collectives=_choice(conf, COLLECTIVES, ("auto", "sockets", "tensorflow")),
        port_filter=boolean(conf, PORT_FILTER, default=True),
        closes_port=boolean(conf, CLOSE_PORT, default=True),
        protection=_choice(conf, PROTECTION, ("auto", "integrity", "privacy")),
        max_result_bytes=_bytes(conf.get(MAX_RESULT_SIZE, "1g"), MAX_RESULT_SIZE),
    )


def boolean(conf: Mapping[str, str], key: str, *, default: bool = False) -> bool:
    """Parse a setting that is true or false.

    Raises:
        ClusterError: It is neither.
    """
    value = conf.get(key, "").strip()
    if not value:
        return default
    lower = value.lower()
    if lower not in ("true", "false"):
        raise ClusterError(f"{key} is {value!r}; it must be true or false.")
    return lower == "true"


def _choice(conf: Mapping[str, str], key: str, choices: tuple[_Choice, ...]) -> _Choice:
    """Parse a setting with named values, of which the first is the default."""
    value = conf.get(key, choices[0]).lower()
    if value not in choices:
        raise ClusterError(f"{key} is {value!r}; it must be {', '.join(choices[:-1])} or {choices[-1]}.")
    return value


def _seconds(value: str, key: str) -> float:
    try:
        parsed = float(value)
    except ValueError:
        parsed = -1.0
    if not 0 <= parsed < math.inf:
        raise ClusterError(f"{key} is {value!r}; it must be a non-negative number.")
    return parsed


def _port(value: str, key: str) -> int:
    if not value.isdecimal() or int(value) >= 1 << 16:
        raise ClusterError(f"{key} is {value!r}; it must be a port, at most 65535, or 0 for any free one.")
    return int(value)


def _ports(value: str, key: str) -> tuple[int, ...]:
    """Parse a range of ports, such as ``20000-20099``, into its first port and its last plus one; empty if unset.

    Raises:
        ClusterError: It is not a range of ports.
    """
    if not value:
        return ()
    first, _, last = value.partition("-")
    if first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 1 << 16:
        return int(first), int(last) + 1
    raise ClusterError(f"{key} is {value!r}; it must be a range of ports such as 20000-20099.")


def _bytes(value: str, key: str) -> int:
    """Parse a size in Spark's notation, such as ``1g``, ``512m`` or ``1048576``, into bytes.

    Raises:
        ClusterError: It is not a size.
    """
    match = re.fullmatch(r"(\d+)([a-z]*)", value.lower())
    if match is None or match[2] not in _UNITS:
        raise ClusterError(f"{key} is {value!r}; it must be a size such as 1g.")
    return int(match[1]) << (10 * _UNITS[match[2]])
