"""The agent: the program of a Spark barrier task.

It starts loading TensorFlow in the fork server, joins its peers in the meantime, starts and watches the trainer, and
returns a report and, on rank 0, the function's value.
"""

import contextlib
import json
import os
import pickle
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from ...errors import CheckpointError, SerializationError
from ...formatting import mebibytes, one_line, sentence
from .. import devices, spark_objects
from ..barrier import AllGather, carry_out
from ..failures import Failure
from ..program_files import ProgramFiles
from ..shipping import PACKAGE
from ..specs import TaskSpec, TrainerSpec, WorkerReport, heartbeat_seconds, line_window, tensorflow_version
from ..wire import pieces
from .addresses import announced_host
from .checkpoints import CheckpointTransfer
from .environment import (
    full_disk_error,
    host_cores,
    hosts_of,
    local_directory,
    new_log_directory,
    phase_seconds,
    remove_log_directory,
    trainer_environment,
    visible_gpus,
    worker_contexts,
)
from .fork_client import ForkClient, import_path
from .formation import FormationWatch
from .history import HistoryRelay
from .link import DriverLink
from .listeners import Listeners, open_listeners
from .log_feed import LogFeed
from .output import Tail
from .peer_addresses import own_addresses, peer_addresses
from .process import TrainerOutcome
from .rendezvous import MemberFacts, Stopped, cluster_spec, deadline_after, exchange_addresses, group_spec
from .rows import RowDelivery
from .supervisor import Supervisor

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import BarrierTaskContext, Broadcast

    from ...data.intake import RowReceiver

_PRELOAD = ("tensorflow", "pyspark.cloudpickle", f"{PACKAGE}.runtime.trainer.preload")

# See specs.ROW_SCHEMA.
Row: TypeAlias = tuple[int, str, int, bytes]


class WorkerFailedError(Exception):
    """Fails a Spark task, to report a failure to a driver whose channel cannot be reached."""


def run_task(
    spec: bytes, broadcasts: "Mapping[int, Broadcast[object]]", batches: Iterator["pa.RecordBatch"]
) -> Iterator["pa.RecordBatch"]:
    """Run the agent in a Spark task: take the input's Arrow batches and yield rows of ``specs.ROW_SCHEMA``."""
    import pyarrow as pa
    from pyspark import BarrierTaskContext

    schema = pa.schema([("rank", pa.int32()), ("kind", pa.string()), ("seq", pa.int32()), ("data", pa.binary())])
    agent = Agent(pickle.loads(spec), BarrierTaskContext.get(), broadcasts, batches)  # noqa: S301
    for row in agent.run():
        yield pa.RecordBatch.from_arrays(
            [pa.array([value], field.type) for value, field in zip(row, schema, strict=True)],
            schema=schema,
        )


class Agent:
    """One rank's side of a run, for the lifetime of its Spark task.

    Args:
        spec: The driver's instructions.
        context: Spark's context of this task.
        broadcasts: The program's broadcast variables by id.
        batches: The stage's input, Arrow batches with the rows of the run's DataFrames.
    """

    def __init__(
        self,
        spec: TaskSpec,
        context: "BarrierTaskContext",
        broadcasts: "Mapping[int, Broadcast[object]]",
        batches: Iterator["pa.RecordBatch"],
    ) -> None:
        self._spec = spec
        self._context = context
        self._broadcasts = broadcasts
        self._files = ProgramFiles(local_directory())
        partition = int(context.partitionId())
        hosts = hosts_of([info.address for info in context.getTaskInfos()])
        self._worker = replace(
            worker_contexts(hosts)[partition],
            attempt=spec.attempt,
            checkpoint_dir=spec.config.checkpoint_path,
            log_dir=None if spec.config.log_dir is None else new_log_directory(),
        )
        self._rank, self._host = self._worker.rank, hosts[partition]
        self._report = WorkerReport(self._rank, self._host, partition, os.getpid())
        self._tail = Tail()
        self._started_at = time.time()
        self._met_at: float | None = None
        hello = {"type": "hello", "rank": self._rank, "host": self._host, "pid": os.getpid()}
        self._link = DriverLink(
            spec.driver_addresses,
            spec.secret,
            hello,
            protection=spec.plan.protection,
            window=line_window(spec.world_size),
            heartbeat_seconds=heartbeat_seconds(spec.world_size),
        )
        self._history = HistoryRelay(self._link)
        self._receiver = self._receive_rows(batches)

    def run(self) -> Iterator[Row]:
        """Train; yield the rows that go back to the driver."""
        result: BinaryIO | None = None
        outcome = TrainerOutcome()
        has_channel = False
        try:
            try:
                has_channel = self._link.connect()
                outcome, result = self._train()
            except Exception as error:
                outcome = self._fail(error)
            is_sent = self._send_result(result, outcome)
            self._link.drain()
            failure = None if outcome.failure is None else outcome.failure.to_json()
            report = asdict(self._final_report(outcome))
            epochs = self._history.waiting  # a driver that cannot be reached gets them through Spark
            summary = {"report": report, "failure": failure, "accumulated": outcome.accumulated, "epochs": epochs}
            self._link.send({"type": "report", **summary})
            self._link.close()
            if outcome.failure is not None and not has_channel:
                raise WorkerFailedError(outcome.failure.to_spark_error())
            yield self._rank, "report", 0, json.dumps(summary).encode()
            if result is not None and outcome.failure is None and not is_sent:
                for seq, piece in enumerate(pieces(result, outcome.result_bytes)):
                    yield self._rank, "result", seq, piece
        finally:
            self._link.close(linger=0)
            self._files.close()
            if self._receiver is not None:
                self._receiver.close()
            if result is not None:
                result.close()
            remove_log_directory(self._worker.log_dir)

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
        spec, settings = self._spec, self._spec.plan.settings
        count = spec.plan.gpus_by_rank[self._rank] if spec.plan.gpus_by_rank else 0
        gpus = visible_gpus(self._context, spec.config, count)
        threads = devices.threads_for(host_cores(), self._worker.local_world_size, int(self._context.cpus()))
        self._report = replace(self._report, threads=threads, devices=gpus or ("CPU",), tensorflow=tensorflow_version())
        transfer = self._checkpoint_transfer()
        fork_client = ForkClient(
            warm=settings.warm_start, env=spec.config.env, preload=_PRELOAD, warm_seconds=settings.warm_seconds
        )
        self._warn(fork_client.warning)
        try:
            host = announced_host(self._host, settings.worker_network, loopback=spec.is_local)
            ports = range(*settings.worker_ports) if settings.worker_ports else None
            with contextlib.closing(open_listeners(host, ports, listens=spec.plan.uses_sockets)) as listeners:
                members = self._exchange_addresses(listeners)
                all_gather = self._context.allGather if self._report.rendezvous == "allGather" else None
                supervisor = Supervisor(
                    self._rank, self._host, fork_client, self._link, self._tail, self._history,
                    driver_is_client=spec.driver_is_client,
                    log_to_executor=not spec.is_local,  # there, the driver shows the lines on the same stderr
                    logs=LogFeed(self._worker.log_dir, self._link),
                    has_gpus=bool(gpus),
                    released_by_driver=all_gather is None,
                    formation=FormationWatch(
                        self._rank, self._host, cluster_spec(members)["worker"], spec.config.start_timeout
                    ),
                    rows=self._row_delivery(all_gather),
                    transfer=transfer,
                )  # fmt: skip
                checkpoints = {} if transfer is None else self._fetch_checkpoints(transfer)
                trainer = self._trainer_spec(members, gpus, tuple(checkpoints))
                files, sockets = list(checkpoints.values()), (listeners.remote, listeners.local)
                result = supervisor.start(trainer, spec.payload, local_directory(), sockets, files)
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

    def _exchange_addresses(self, listeners: Listeners) -> list[MemberFacts]:
        """Exchange addresses with the other ranks; return all members by rank."""
        sources = tuple(own_addresses()) if self._spec.filters_port else None
        member = MemberFacts(self._rank, self._host, self._report.tensorflow, listeners.member, sources)
        deadline = deadline_after(self._spec.config.start_timeout)
        members, method = exchange_addresses(
            member, self._worker.world_size, self._link, self._context.allGather, deadline
        )
        self._met_at = time.time()
        self._report = replace(self._report, rendezvous=method)
        return members

    def _checkpoint_transfer(self) -> CheckpointTransfer | None:
        """Return the transfer of checkpoints if the driver keeps them and can be reached."""
        spec = self._spec
        if not spec.checkpoints.at_driver:
            return None
        if not self._link.is_open:
            self._warn(
                "No checkpoints will be saved: the executors cannot reach the driver, which would keep them. Set "
                "checkpoint_dir to a location that all hosts share, or open the driver's port "
                "(tensorflow.spark.distributor.driverPort) to the executors."
            )
            return None
        protection = spec.plan.protection
        return CheckpointTransfer(spec.driver_addresses, spec.secret, self._rank, local_directory(), protection)

    def _fetch_checkpoints(self, transfer: CheckpointTransfer) -> dict[str, BinaryIO]:
        try:
            return transfer.fetch(self._link.send_heartbeat)
        except (OSError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"Rank {self._rank} @ {self._host} could not fetch its checkpoints from the driver: "
                f"{sentence(one_line(error))}"
            ) from error

    def _warn(self, text: str | None) -> None:
        if not text:
            return
        self._report = replace(self._report, warnings=(*self._report.warnings, text))
        self._link.send({"type": "warning", "text": text})

    def _row_delivery(self, all_gather: AllGather | None) -> RowDelivery | None:
        if self._receiver is None:
            return None
        return RowDelivery(self._receiver, self._link, all_gather, self._link.send_heartbeat)

    def _trainer_spec(
        self, members: Sequence[MemberFacts], gpus: tuple[str, ...], checkpoint_names: tuple[str, ...]
    ) -> TrainerSpec:
        spec, threads = self._spec, self._report.threads
        cluster, group = cluster_spec(members), None
        if spec.plan.uses_sockets and len(members) > 1:
            group = group_spec(self._rank, members, spec.secret, spec.attempt, spec.plan.protection)
        addresses, warning = peer_addresses(members)
        self._warn(warning if self._worker.is_chief else None)
        at_driver = spec.checkpoints.at_driver and self._link.is_open
        return TrainerSpec(
            context=self._worker,
            settings=spec.trainer_settings(at_driver=at_driver),
            host=self._host,
            partition=self._report.partition,
            env=trainer_environment(os.environ, spec.config.env, cluster, self._rank, gpus, threads),
            path=(*self._files.unpack(spec.modules), *import_path(spec.config.env)),
            argv=(sys.argv[0] if sys.argv else "",),
            peer_addresses=addresses,
            cwd=os.getcwd(),
            barrier=carry_out(self._context),
            spark_objects=spark_objects.carry_out(self._broadcasts, self._files.write),
            threads=threads,
            gpus=gpus,
            has_data=bool(spec.frames),
            group=group,
            checkpoint_names=checkpoint_names,
        )

    def _fail(self, error: Exception) -> TrainerOutcome:
        """Report an error of the agent itself as the worker's failure."""
        rank, host, name = self._rank, self._host, type(error).__name__
        error = full_disk_error(error, host) or error
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
            **outcome.measured,
            warnings=(*self._report.warnings, *outcome.warnings),
        )

    def _send_result(self, result: BinaryIO | None, outcome: TrainerOutcome) -> bool:
        """Send the value over the channel; return False if it has to go through Spark's rows instead."""
        size = outcome.result_bytes
        if result is None or outcome.failure is not None or not size or self._link.send_result(result, size):
            return True
        limit = self._spec.max_row_bytes
        if limit and size > limit:
            error = SerializationError(
                f"The function returned a value of {mebibytes(size)} (pickled). The executors cannot reach the "
                f"driver's channel at {self._spec.driver_addresses}, and Spark's own results are limited by the "
                f"memory of the driver's JVM to {mebibytes(limit)}. Open that address to the executors "
                "(tensorflow.spark.distributor.driverPort fixes its port), raise spark.driver.memory and "
                "spark.driver.maxResultSize, or save the value to storage and return its path."
            )
            outcome.failure = self._fail(error).failure
        return False
