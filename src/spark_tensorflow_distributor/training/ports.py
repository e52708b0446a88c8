"""The port of a worker's TensorFlow server."""

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any


class PortTakenError(Exception):
    """Another process bound this worker's port after it was chosen and before TensorFlow used it."""


def tf_config() -> dict[str, Any]:
    """Return TF_CONFIG, which the agent has set."""
    config: dict[str, Any] = json.loads(os.environ["TF_CONFIG"])
    return config


def own_port() -> int:
    """Return this worker's port in TF_CONFIG."""
    config = tf_config()
    return int(config["cluster"]["worker"][config["task"]["index"]].rpartition(":")[2])


def wait_for_leader(config: Mapping[str, Any], seconds: float = 60.0) -> None:
    """Wait until rank 0's server accepts connections; return at once on rank 0 itself.

    gRPC clients that connect before that server is up are refused, and retry only after a full second (gRPC's initial
    backoff). Polling every few milliseconds makes the start quick.

    Args:
        config: TF_CONFIG.
        seconds: How long to wait; after that, TensorFlow itself reports what is wrong.
    """
    if config["task"]["index"] == 0:
        return
    host, _, port = config["cluster"]["worker"][0].rpartition(":")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.003)
