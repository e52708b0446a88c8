"""A stub of TensorFlow for tests of Spark, processes and sockets: it imports instantly and connects to no peer.

It has what the trainer calls before it calls the function, and records the calls.
"""

import contextlib
import json
import os
import socket
import time
import types

__version__ = "2.0-stub"

asked = {}
# Open until the process ends, as TensorFlow's.
servers = []

if os.environ.get("STUB_TF_IMPORT_SECONDS"):
    time.sleep(float(os.environ["STUB_TF_IMPORT_SECONDS"]))


# For annotations only.
Tensor = RaggedTensor = DType = type("Tensor", (), {})
int64 = "int64"


sysconfig = types.SimpleNamespace(get_build_info=dict)


class autograph:
    experimental = types.SimpleNamespace(do_not_convert=lambda function: function)


class Variable:
    def __init__(self, value, trainable=True, dtype=None, name=None):
        self.value = value


def init_scope():
    return contextlib.nullcontext()


def device(name):
    return contextlib.nullcontext()


VariableSynchronization = types.SimpleNamespace(ON_READ="on read")
VariableAggregation = types.SimpleNamespace(SUM="sum", ONLY_FIRST_REPLICA="only first replica")


class data:
    Dataset = Tensor

    class Options:
        def __init__(self):
            self.autotune = types.SimpleNamespace()


class compat:
    class v1:
        @staticmethod
        def get_default_graph():
            return None


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


class nn:
    @staticmethod
    def compute_average_loss(per_example_loss, sample_weight=None, global_batch_size=None):
        raise NotImplementedError


class _Strategy:
    def __init__(self, extended):
        self.extended = extended

    @contextlib.contextmanager
    def scope(self):
        yield

    def experimental_distribute_dataset(self, dataset, options=None):
        raise NotImplementedError


class _MultiWorkerMirroredStrategy(_Strategy):
    """Binds the worker's port, as TensorFlow would; fails once where a test has taken the port."""

    def __init__(self, communication_options=None):
        asked["options"] = communication_options
        spec = json.loads(os.environ.get("TF_CONFIG") or "{}")
        self.num_replicas_in_sync = len(spec["cluster"]["worker"]) if spec else 1
        super().__init__(
            types.SimpleNamespace(
                worker_devices=("/job:worker/device:CPU:0",),
                _cross_device_ops=types.SimpleNamespace(_launchers=[None]),
            )
        )
        self.cluster_resolver = types.SimpleNamespace(task_id=spec["task"]["index"] if spec else None)
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


class _MirroredStrategy(_Strategy):
    def __init__(self):
        raise RuntimeError("crashes in a process that trains under another strategy")


class _Implementation:
    RING = "RING"


class _ExperimentalDistribute:
    CommunicationImplementation = _Implementation

    @staticmethod
    def CommunicationOptions(implementation):
        return implementation


class distribute:
    Strategy = _Strategy
    MirroredStrategy = _MirroredStrategy
    MultiWorkerMirroredStrategy = _MultiWorkerMirroredStrategy
    ReplicaContext = type("ReplicaContext", (), {})
    experimental = _ExperimentalDistribute
    cluster_resolver = types.SimpleNamespace(TFConfigClusterResolver=lambda: None)
