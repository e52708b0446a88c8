"""The agent: what runs in a Spark barrier task.

It meets its peers while a trainer's image is loaded, has the trainer started, watches it, and hands back a report
and, on rank 0, the function's value.
"""

import errno
import json
import mmap
import os
import pickle
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, BinaryIO

from ...errors import CheckpointError, ClusterError, SerializationError
from .. import devices
from ..barrier import carry_out
from ..failures import Failure
from ..specs import TaskSpec, TrainerSpec, WorkerReport, tensorflow_version
from ..wire import chunks
from .checkpoints import CheckpointTransfer
from .environment import (
    host_cores,
    hosts_of,
    local_directory,
    phase_seconds,
    trainer_environment,
    worker_contexts,
)
from .fork_client import ForkClient, import_path
from .link import DriverLink
from .output import Tail
from .process import TrainerOutcome
from .rendezvous import Stopped, cluster_spec, deadline_after, hold_port, meet
from .rows import RowDelivery
from .supervisor import Supervisor

_PRELOAD = ("tensorflow", "pyspark.cloudpickle")


class WorkerFailedError(Exception):
    """Ends a Spark task whose worker failed, where the driver can be told in no other way."""


def run_task(spec: bytes, batches: Iterator[Any]) -> Iterator[Any]:
    """The body of the Spark task: Arrow batches in, rows of ``protocol.ROW_SCHEMA`` out."""
    import pyarrow as pa
    from pyspark import BarrierTaskContext

    schema = pa.schema([("rank", pa.int32()), ("kind", pa.string()), ("seq", pa.int32()), ("data", pa.binary())])
    agent = Agent(pickle.loads(spec), BarrierTaskContext.get(), batches)
    for rank, kind, seq, data in agent.run():
        yield pa.RecordBatch.from_arrays(
            [pa.array([value], field.type) for value, field in zip((rank, kind, seq, data), schema, strict=True)],
            schema=schema,
        )


class Agent:
    """One rank's side of a run, from the first to the last moment of its Spark task.

    Args:
        spec: what the driver wants.
        context: Spark's BarrierTaskContext of this task.
        batches: the stage's input, Arrow batches with the rows of the run's DataFrames.
    """

    def __init__(self, spec: TaskSpec, context: Any, batches: Iterator[Any]) -> None:
        self._spec = spec
        self._context = context
        self._partition = int(context.partitionId())
        hosts = hosts_of([info.address for info in context.getTaskInfos()])
        self._worker = replace(
            worker_contexts(hosts)[self._partition],
            attempt=spec.attempt,
            checkpoint_dir=spec.config.checkpoint_dir,
        )
        self._rank, self._host = self._worker.rank, hosts[self._partition]
        self._tail = Tail()
        self._started = time.time()
        self._times: dict[str, float] = {}
        self._facts: dict[str, Any] = {}
        self._warnings: list[str] = []
        hello = {"type": "hello", "rank": self._rank, "host": self._host, "pid": os.getpid()}
        self._link = DriverLink(spec.driver_addresses, spec.secret, hello)
        self._intake: Any = None
        if spec.frames:
            from ...data.intake import RowReceiver

            self._intake = RowReceiver(
                spec.frames,
                batches,
                rank=self._rank,
                world_size=self._worker.world_size,
                directory=local_directory(),
                local_world_size=self._worker.local_world_size,
            )
        else:
            for _ in batches:  # Spark's own placeholder, a row or none
                pass

    def run(self) -> Iterator[tuple[int, str, int, bytes]]:
        """Train; yields the rows that go back to the driver."""
        result: BinaryIO | None = None
        ending = TrainerOutcome()
        try:
            self._link.connect()
            has_channel = self._link.is_open
            try:
                ending, result = self._work()
            except Exception as error:
                ending = self._own_failure(error)
            taken = self._hand_over(result, ending)
            failure = None if ending.failure is None else ending.failure.to_json()
            tells = {"report": asdict(self._report(ending)), "failure": failure}
            self._link.send({"type": "report", **tells})
            self._link.close()
            if ending.failure is not None and not has_channel:
                raise WorkerFailedError(ending.failure.to_spark_error())
            yield self._rank, "report", 0, json.dumps(tells).encode()
            if result is not None and ending.failure is None and not taken:
                yield from self._result_rows(result, ending.result_bytes)
        finally:
            self._link.close(linger=0)
            if self._intake is not None:
                self._intake.close()
            if result is not None:
                result.close()

    def _work(self) -> tuple[TrainerOutcome, BinaryIO]:
        spec, worker = self._spec, self._worker
        gpus = self._gpus()
        threads = devices.threads_for(host_cores(), worker.local_world_size, int(self._context.cpus()))
        self._facts.update(threads=threads, devices=gpus or ("CPU",), tensorflow=tensorflow_version())
        courier = self._courier()
        launcher = ForkClient(
            warm=spec.warm_start, env=spec.config.env, preload=_PRELOAD, warm_seconds=spec.warm_seconds
        )
        try:
            port = hold_port(range(*spec.worker_ports) if spec.worker_ports else None)
            with port:
                member = {
                    "rank": self._rank,
                    "host": self._host,
                    "port": port.getsockname()[1],
                    "tensorflow": self._facts["tensorflow"],
                }
                deadline = deadline_after(spec.config.start_timeout)
                members, way = meet(member, worker.world_size, self._link, self._context, deadline)
                self._times["met"] = time.time()
                self._facts["way"] = way
                supervisor = Supervisor(
                    self._rank,
                    self._host,
                    launcher,
                    self._link,
                    self._tail,
                    driver_is_client=spec.driver_is_client,
                    log_to_executor=spec.log_to_executor,
                    ends_together=way == "channel",
                    rows=self._hand_over_rows(way),
                    courier=courier,
                )
                kept = self._fetch(courier) if courier is not None else {}
                trainer = self._trainer_spec(cluster_spec(members, loopback=spec.loopback), gpus, threads, kept)
                result = supervisor.start(trainer, spec.payload, local_directory(), port, list(kept.values()))
                for file in kept.values():
                    file.close()
        except BaseException:
            launcher.close()
            raise
        try:
            ending = supervisor.watch()
            if ending.failure is None and way == "allGather":
                # Nobody goes before all have returned: a trainer that ends takes its peers' connections along.
                self._context.barrier()
        finally:
            supervisor.finish()
        return ending, result

    def _courier(self) -> CheckpointTransfer | None:
        """For checkpoints, where the driver keeps them and can be reached."""
        spec = self._spec
        if not spec.trainer.checkpoints.at_driver:
            return None
        if not self._link.is_open:
            self._warn(
                "No checkpoints: the executors cannot reach the driver, which would keep them. Set checkpoint_dir to a "
                "place that all hosts share, or open the driver's channel (tensorflow.spark.distributor.driverPort)."
            )
            return None
        return CheckpointTransfer(spec.driver_addresses, spec.secret, self._rank, local_directory())

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._link.send({"type": "warning", "text": text})

    def _fetch(self, courier: CheckpointTransfer) -> dict[str, BinaryIO]:
        try:
            return courier.fetch(self._link.tell_alive)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"The checkpoints that the driver keeps did not reach rank {self._rank} @ {self._host}: "
                f"{type(error).__name__}: {error}."
            ) from error

    def _hand_over_rows(self, way: str) -> RowDelivery | None:
        if self._intake is None:
            return None
        return RowDelivery(self._intake, self._link, self._context.allGather if way == "allGather" else None)

    def _gpus(self) -> tuple[str, ...]:
        spec = self._spec
        if not spec.config.use_gpu:
            return ()
        resources = {name: info.addresses for name, info in self._context.resources().items()}
        addresses = devices.task_addresses(resources, spec.config.gpu_resource_name)
        count = spec.gpus_by_rank[self._rank]
        return devices.visible_devices(addresses, count, os.environ.get("CUDA_VISIBLE_DEVICES"))

    def _trainer_spec(
        self, cluster: Mapping[str, Any], gpus: tuple[str, ...], threads: int, kept: Mapping[str, BinaryIO]
    ) -> TrainerSpec:
        spec = self._spec
        checkpoints = spec.trainer.checkpoints
        at_driver = checkpoints.at_driver and self._link.is_open
        return TrainerSpec(
            context=self._worker,
            settings=replace(spec.trainer, checkpoints=replace(checkpoints, at_driver=at_driver)),
            host=self._host,
            partition=self._partition,
            env=trainer_environment(os.environ, spec.config.env, cluster, self._rank, gpus, threads),
            path=tuple(import_path(spec.config.env)),
            argv=(sys.argv[0] if sys.argv else "",),
            cwd=os.getcwd(),
            barrier=carry_out(self._context),
            threads=threads,
            gpus=gpus,
            has_data=bool(spec.frames),
            checkpoint_names=tuple(kept),
        )

    def _own_failure(self, error: Exception) -> TrainerOutcome:
        """Report an error of the agent itself as the worker's failure."""
        rank, host, name = self._rank, self._host, type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = ClusterError(
                f"The disk of {local_directory()} on {host} is full: {error}. Free space there, or point "
                "spark.local.dir (SPARK_LOCAL_DIRS on the executors) to a larger disk."
            )
        if isinstance(error, Stopped):
            name = "stopped"
            failure = Failure(rank, host, name, str(error), log_tail=self._tail.get())
        else:
            failure = Failure.from_exception(rank, host, "startup", error, log_tail=self._tail.get())
        self._link.send({"type": "failed", "failure": failure.to_json()})
        return TrainerOutcome(failure=failure, exit=name)

    def _report(self, ending: TrainerOutcome) -> WorkerReport:
        return WorkerReport(
            rank=self._rank,
            host=self._host,
            partition=self._partition,
            pid=os.getpid(),
            devices=tuple(self._facts.get("devices", ())),
            threads=self._facts.get("threads", 0),
            tensorflow=self._facts.get("tensorflow", ""),
            rendezvous=self._facts.get("way", ""),
            seconds=phase_seconds(self._spec.submitted_at, self._started, self._times, ending.phases, time.time()),
            peak_rss=ending.peak_rss,
            rows={} if self._intake is None else self._intake.rows,
            spooled_bytes=0 if self._intake is None else self._intake.bytes,
            exit=ending.exit,
            dropped_lines=self._link.dropped_lines,
            log_tail=self._tail.get(),
            warnings=(*self._warnings, *ending.warnings),
        )

    def _hand_over(self, result: BinaryIO | None, ending: TrainerOutcome) -> bool:
        """Send the value to the driver; False where it has to go through Spark's rows."""
        size = ending.result_bytes
        if result is None or ending.failure is not None or not size or self._link.send_result(result, size):
            return True
        limit = self._spec.max_row_bytes
        if limit and size > limit:
            error = SerializationError(
                f"The function returned a value of {size / 2**20:.1f} MiB (pickled). The executors cannot reach the "
                f"driver's channel at {self._spec.driver_addresses}, and through Spark's own results not more than "
                f"{limit / 2**20:.1f} MiB can go, for the memory of the driver's JVM. Open that address to the "
                "executors (tensorflow.spark.distributor.driverPort fixes its port), raise spark.driver.memory and "
                "spark.driver.maxResultSize, or save the value to storage and return its path."
            )
            ending.failure = self._own_failure(error).failure
        return False

    def _result_rows(self, result: BinaryIO, size: int) -> Iterator[tuple[int, str, int, bytes]]:
        if not size:
            return
        with mmap.mmap(result.fileno(), size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            for seq, piece in enumerate(chunks(view)):
                with piece:
                    yield self._rank, "result", seq, bytes(piece)
