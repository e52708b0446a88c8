"""Stands in for TensorFlow where a test is about Spark, processes and sockets: imports in no time, meets nobody.

What the trainer asks of TensorFlow before it calls the function is here, and notes what it was told.
"""

import contextlib
import json
import os
import socket
import time

__version__ = "2.0-stub"

asked = {}
# Open until the process ends, as TensorFlow's.
servers = []

if os.environ.get("STUB_TF_IMPORT_SECONDS"):
    time.sleep(float(os.environ["STUB_TF_IMPORT_SECONDS"]))


# For annotations only.
Tensor = RaggedTensor = DType = type("Tensor", (), {})


class data:
    Dataset = Options = Tensor


class _Threading:
    @staticmethod
    def set_intra_op_parallelism_threads(n):
        asked["intra"] = n

    @staticmethod
    def set_inter_op_parallelism_threads(n):
        asked["inter"] = n


class _ExperimentalConfig:
    @staticmethod
    def set_memory_growth(device, on):
        asked.setdefault("growth", []).append((device, on))


class config:
    threading = _Threading
    experimental = _ExperimentalConfig

    @staticmethod
    def list_physical_devices(kind):
        if os.environ.get("STUB_TF_SEES_GPUS") != "1":
            return []
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]


class test:
    @staticmethod
    def is_built_with_cuda():
        return False


class _Strategy:
    """Binds the worker's port, as TensorFlow would; fails once where a test has taken the port."""

    def __init__(self, communication_options=None):
        asked["options"] = communication_options
        spec = json.loads(os.environ.get("TF_CONFIG") or "{}")
        if spec:
            port = int(spec["cluster"]["worker"][spec["task"]["index"]].rsplit(":", 1)[1])
            marker = os.environ.get("STUB_TF_TAKE_PORT")
            if marker and spec["task"]["index"] == 1 and not os.path.exists(marker):
                open(marker, "w").close()
                raise RuntimeError("UNKNOWN: Could not start gRPC server")
            server = socket.socket()
            server.bind(("", port))
            server.listen()
            servers.append(server)

    @contextlib.contextmanager
    def scope(self):
        yield


class _Implementation:
    RING = "RING"


class _ExperimentalDistribute:
    CommunicationImplementation = _Implementation

    @staticmethod
    def CommunicationOptions(implementation):
        return implementation


class distribute:
    MultiWorkerMirroredStrategy = _Strategy
    experimental = _ExperimentalDistribute
