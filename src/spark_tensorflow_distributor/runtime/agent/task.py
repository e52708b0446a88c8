"""The agent: the program of a Spark barrier task.

It starts loading TensorFlow in the fork server, meets its peers in the meantime, starts and watches the trainer, and
returns a report and, on rank 0, the function's value.
"""

import errno
import json
import mmap
import os
import pickle
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from ...errors import CheckpointError, ClusterError, SerializationError
from ...formatting import mebibytes, one_line
from .. import devices
from ..barrier import AllGather, carry_out
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

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import BarrierTaskContext

    from ...data.intake import RowReceiver

_PRELOAD = ("tensorflow", "pyspark.cloudpickle")

# See specs.ROW_SCHEMA.
Row: TypeAlias = tuple[int, str, int, bytes]


class WorkerFailedError(Exception):
    """Fails a Spark task, to report a failure to a driver whose channel cannot be reached."""


def run_task(spec: bytes, batches: Iterator["pa.RecordBatch"]) -> Iterator["pa.RecordBatch"]:
    """Run the agent in a Spark task; takes the input's Arrow batches and yields rows of ``specs.ROW_SCHEMA``."""
    import pyarrow as pa
    from pyspark import BarrierTaskContext

    schema = pa.schema([("rank", pa.int32()), ("kind", pa.string()), ("seq", pa.int32()), ("data", pa.binary())])
    agent = Agent(pickle.loads(spec), BarrierTaskContext.get(), batches)
    for row in agent.run():
        yield pa.RecordBatch.from_arrays(
            [pa.array([value], field.type) for value, field in zip(row, schema, strict=True)],
            schema=schema,
        )


class Agent:
    """One rank's side of a run, for the whole life of its Spark task.

    Args:
        spec: What the driver asks for.
        context: Spark's context of this task.
        batches: The stage's input, Arrow batches with the rows of the run's DataFrames.
    """

    def __init__(self, spec: TaskSpec, context: "BarrierTaskContext", batches: Iterator["pa.RecordBatch"]) -> None:
        self._spec = spec
        self._context = context
        partition = int(context.partitionId())
        hosts = hosts_of([info.address for info in context.getTaskInfos()])
        self._worker = replace(
            worker_contexts(hosts)[partition], attempt=spec.attempt, checkpoint_dir=spec.config.checkpoint_dir
        )
        self._rank, self._host = self._worker.rank, hosts[partition]
        self._report = WorkerReport(self._rank, self._host, partition, os.getpid())
        self._tail = Tail()
        self._started_at = time.time()
        self._met_at: float | None = None
        hello = {"type": "hello", "rank": self._rank, "host": self._host, "pid": os.getpid()}
        self._link = DriverLink(spec.driver_addresses, spec.secret, hello)
        self._receiver = self._receive_rows(batches)

    def run(self) -> Iterator[Row]:
        """Train; yields the rows that go back to the driver."""
        result: BinaryIO | None = None
        outcome = TrainerOutcome()
        try:
            self._link.connect()
            has_channel = self._link.is_open
            try:
                outcome, result = self._train()
            except Exception as error:
                outcome = self._fail(error)
            is_sent = self._send_result(result, outcome)
            failure = None if outcome.failure is None else outcome.failure.to_json()
            summary = {"report": asdict(self._final_report(outcome)), "failure": failure}
            self._link.send({"type": "report", **summary})
            self._link.close()
            if outcome.failure is not None and not has_channel:
                raise WorkerFailedError(outcome.failure.to_spark_error())
            yield self._rank, "report", 0, json.dumps(summary).encode()
            if result is not None and outcome.failure is None and not is_sent:
                yield from self._result_rows(result, outcome.result_bytes)
        finally:
            self._link.close(linger=0)
            if self._receiver is not None:
                self._receiver.close()
            if result is not None:
                result.close()

    def _receive_rows(self, batches: Iterator["pa.RecordBatch"]) -> "RowReceiver | None":
        if not self._spec.frames:
            for _ in batches:  # Spark's placeholder, one row or none
                pass
            return None
        from ...data.intake import RowReceiver

        return RowReceiver(
            self._spec.frames,
            batches,
            rank=self._rank,
            world_size=self._worker.world_size,
            directory=local_directory(),
            local_world_size=self._worker.local_world_size,
        )

    def _train(self) -> tuple[TrainerOutcome, BinaryIO]:
        spec = self._spec
        gpus = self._gpus()
        threads = devices.threads_for(host_cores(), self._worker.local_world_size, int(self._context.cpus()))
        self._report = replace(self._report, threads=threads, devices=gpus or ("CPU",), tensorflow=tensorflow_version())
        transfer = self._checkpoint_transfer()
        fork_client = ForkClient(
            warm=spec.warm_start, env=spec.config.env, preload=_PRELOAD, warm_seconds=spec.warm_seconds
        )
        try:
            with hold_port(range(*spec.worker_ports) if spec.worker_ports else None) as port:
                cluster = self._meet(port.getsockname()[1])
                all_gather = self._context.allGather if self._report.rendezvous == "allGather" else None
                supervisor = Supervisor(
                    self._rank,
                    self._host,
                    fork_client,
                    self._link,
                    self._tail,
                    driver_is_client=spec.driver_is_client,
                    log_to_executor=spec.log_to_executor,
                    released_by_driver=all_gather is None,
                    rows=self._row_delivery(all_gather),
                    transfer=transfer,
                )
                checkpoints = {} if transfer is None else self._fetch_checkpoints(transfer)
                trainer = self._trainer_spec(cluster, gpus, tuple(checkpoints))
                files = list(checkpoints.values())
                result = supervisor.start(trainer, spec.payload, local_directory(), port, files)
                for file in files:
                    file.close()
        except BaseException:
            fork_client.close()
            raise
        try:
            outcome = supervisor.watch()
            if outcome.failure is None and all_gather is not None:
                # A trainer that exits cuts its peers' connections, so none may exit before all have returned.
                self._context.barrier()
        finally:
            supervisor.finish()
        return outcome, result

    def _meet(self, port: int) -> dict[str, list[str]]:
        """Exchange addresses with the other ranks; returns TF_CONFIG's ``cluster``."""
        member = {"rank": self._rank, "host": self._host, "port": port, "tensorflow": self._report.tensorflow}
        deadline = deadline_after(self._spec.config.start_timeout)
        members, method = meet(member, self._worker.world_size, self._link, self._context.allGather, deadline)
        self._met_at = time.time()
        self._report = replace(self._report, rendezvous=method)
        return cluster_spec(members, loopback=self._spec.loopback)

    def _checkpoint_transfer(self) -> CheckpointTransfer | None:
        """Return the transfer of checkpoints if the driver keeps them and can be reached."""
        spec = self._spec
        if not spec.trainer.checkpoints.at_driver:
            return None
        if not self._link.is_open:
            self._warn(
                "No checkpoints will be saved: the executors cannot reach the driver, which would keep them. Set "
                "checkpoint_dir to a location that all hosts share, or open the driver's port "
                "(tensorflow.spark.distributor.driverPort) to the executors."
            )
            return None
        return CheckpointTransfer(spec.driver_addresses, spec.secret, self._rank, local_directory())

    def _fetch_checkpoints(self, transfer: CheckpointTransfer) -> dict[str, BinaryIO]:
        try:
            return transfer.fetch(self._link.send_heartbeat)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"Rank {self._rank} @ {self._host} could not fetch its checkpoints from the driver: {one_line(error)}."
            ) from error

    def _warn(self, text: str) -> None:
        self._report = replace(self._report, warnings=(*self._report.warnings, text))
        self._link.send({"type": "warning", "text": text})

    def _row_delivery(self, all_gather: AllGather | None) -> RowDelivery | None:
        return None if self._receiver is None else RowDelivery(self._receiver, self._link, all_gather)

    def _gpus(self) -> tuple[str, ...]:
        spec = self._spec
        if not spec.config.use_gpu:
            return ()
        resources = {name: info.addresses for name, info in self._context.resources().items()}
        addresses = devices.task_addresses(resources, spec.config.gpu_resource_name)
        count = spec.gpus_by_rank[self._rank]
        return devices.visible_devices(addresses, count, os.environ.get("CUDA_VISIBLE_DEVICES"))

    def _trainer_spec(
        self, cluster: Mapping[str, Sequence[str]], gpus: tuple[str, ...], checkpoint_names: tuple[str, ...]
    ) -> TrainerSpec:
        spec, threads = self._spec, self._report.threads
        checkpoints = spec.trainer.checkpoints
        at_driver = checkpoints.at_driver and self._link.is_open
        return TrainerSpec(
            context=self._worker,
            settings=replace(spec.trainer, checkpoints=replace(checkpoints, at_driver=at_driver)),
            host=self._host,
            partition=self._report.partition,
            env=trainer_environment(os.environ, spec.config.env, cluster, self._rank, gpus, threads),
            path=tuple(import_path(spec.config.env)),
            argv=(sys.argv[0] if sys.argv else "",),
            cwd=os.getcwd(),
            barrier=carry_out(self._context),
            threads=threads,
            gpus=gpus,
            has_data=bool(spec.frames),
            checkpoint_names=checkpoint_names,
        )

    def _fail(self, error: Exception) -> TrainerOutcome:
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

    def _final_report(self, outcome: TrainerOutcome) -> WorkerReport:
        receiver = self._receiver
        return replace(
            self._report,
            seconds=phase_seconds(self._spec.submitted_at, self._started_at, self._met_at, outcome.phases, time.time()),
            peak_rss=outcome.peak_rss,
            rows={} if receiver is None else receiver.rows,
            spooled_bytes=0 if receiver is None else receiver.bytes,
            exit=outcome.exit,
            dropped_lines=self._link.dropped_lines,
            log_tail=self._tail.get(),
            warnings=(*self._report.warnings, *outcome.warnings),
        )

    def _send_result(self, result: BinaryIO | None, outcome: TrainerOutcome) -> bool:
        """Send the value over the channel; returns False if it has to go through Spark's rows instead."""
        size = outcome.result_bytes
        if result is None or outcome.failure is not None or not size or self._link.send_result(result, size):
            return True
        limit = self._spec.max_row_bytes
        if limit and size > limit:
            error = SerializationError(
                f"The function returned a value of {mebibytes(size)} (pickled). The executors cannot reach the "
                f"driver's channel at {self._spec.driver_addresses}, and through Spark's own results the memory of "
                f"the driver's JVM allows at most {mebibytes(limit)}. Open that address to the executors "
                "(tensorflow.spark.distributor.driverPort fixes its port), raise spark.driver.memory and "
                "spark.driver.maxResultSize, or save the value to storage and return its path."
            )
            outcome.failure = self._fail(error).failure
        return False

    def _result_rows(self, result: BinaryIO, size: int) -> Iterator[Row]:
        if not size:
            return
        with mmap.mmap(result.fileno(), size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            for seq, piece in enumerate(chunks(view)):
                with piece:
                    yield self._rank, "result", seq, bytes(piece)
