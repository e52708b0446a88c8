"""Says what limits a run, with the numbers behind it."""

from collections.abc import Iterator, Sequence
from statistics import median

from ....formatting import mebibytes
from ...specs import WorkerReport
from ..record import RunRecord

# Fewer steps, or less time, say more about the start than about the training.
_LEAST_STEPS = 20
_LEAST_SECONDS = 2.0
# Smaller fractions of the steps' time are not worth a change.
_READING = 0.15
_NETWORK = 0.25
# A rank that computes this much longer than the median holds up the others.
_SLOWER = 1.2
_START = 0.5

# How to reduce the waiting for batches: of other datasets, and of DataFrames.
_HINTS = (
    "Pass a Spark DataFrame to run(), which is read without Python; or add cache(), prefetch(tf.data.AUTOTUNE) and "
    "parallel map() calls to the dataset.",
    "Use a larger batch_size; if the function transforms the dataset of a shard, add prefetch(tf.data.AUTOTUNE) and "
    "parallel map() calls.",
)


def advice_for(report: RunRecord) -> list[str]:
    """Return sentences about what limits the run, the most important first."""
    workers = [
        worker
        for worker in report.workers.values()
        if worker.times.get("steps", 0) >= _LEAST_STEPS and worker.times.get("loop", 0.0) >= _LEAST_SECONDS
    ]
    found: list[tuple[float, str]] = []
    if workers:
        found += _reading(workers)
        measured = [worker for worker in workers if "collectives" in worker.times]
        found += _network(measured)
        found += _slowest(measured)
    found += _lost(report)
    found += _start(report)
    return [text for _, text in sorted(found, key=lambda each: -each[0])]


def _reading(workers: Sequence[WorkerReport]) -> Iterator[tuple[float, str]]:
    worst = max(workers, key=lambda worker: worker.times["reading"] / worker.times["loop"])
    share = worst.times["reading"] / worst.times["loop"]
    if share > _READING:
        yield (
            share,
            f"Reading: rank {worst.rank} waited for its next batch in {share:.0%} of the time of its steps "
            f"({worst.times['reading']:.1f} of {worst.times['loop']:.1f} s). {_HINTS[bool(worst.rows)]}",
        )


def _network(workers: Sequence[WorkerReport]) -> Iterator[tuple[float, str]]:
    """Judge the network by the rank that arrives last: it never waits, so its time in collectives is what they cost."""
    if len(workers) < 2:
        return
    fastest = min(workers, key=lambda worker: worker.times["collectives"] / worker.times["loop"])
    share = fastest.times["collectives"] / fastest.times["loop"]
    if share > _NETWORK:
        hosts = len({worker.host for worker in workers})
        where = f"between {hosts} hosts" if hosts > 1 else "on one host"
        compress = ", or set gradient_compression" if hosts > 1 else ""
        yield (
            share,
            f"Communication: every rank spends at least {share:.0%} of its step time in collectives {where} "
            f"(rank {fastest.rank}: {fastest.times['collectives']:.1f} of {fastest.times['loop']:.1f} s for "
            f"{mebibytes(fastest.times['bytes'])}). Use a larger global batch or fewer workers{compress}.",
        )


def _slowest(workers: Sequence[WorkerReport]) -> Iterator[tuple[float, str]]:
    if len(workers) < 2:
        return
    per_step = {worker.rank: _own_seconds(worker) / worker.times["steps"] for worker in workers}
    slowest = max(workers, key=lambda worker: per_step[worker.rank])
    typical = median(per_step[worker.rank] for worker in workers if worker is not slowest)
    own = per_step[slowest.rank]
    if own > _SLOWER * typical:
        share = (own - typical) * slowest.times["steps"] / slowest.times["loop"]
        if share > 0.1:
            yield (
                share,
                f"The slowest rank: rank {slowest.rank} @ {slowest.host} takes {1e3 * own:.1f} ms for its part of a "
                f"step, the others {1e3 * typical:.1f} ms, so they wait for it in {share:.0%} of the time. Is its "
                f"host busy, or does it have fewer cores ({slowest.threads} threads)?",
            )


def _own_seconds(worker: WorkerReport) -> float:
    return worker.times["loop"] - worker.times["collectives"]


def _lost(report: RunRecord) -> Iterator[tuple[float, str]]:
    lost = sum(attempt.seconds for attempt in report.attempts[:-1])
    if report.seconds and lost > 0.2 * report.seconds:
        yield (
            lost / report.seconds,
            f"Failures: {len(report.attempts) - 1} of {len(report.attempts)} attempts failed, and took {lost:.0f} of "
            f"{report.seconds:.0f} s. Their root causes are among the failures below.",
        )


def _start(report: RunRecord) -> Iterator[tuple[float, str]]:
    workers = [worker for worker in report.workers.values() if "train" in worker.seconds]
    if not workers or report.seconds < 10:
        return
    before = {
        worker.rank: sum(seconds for name, seconds in worker.seconds.items() if name not in ("train", "result"))
        for worker in workers
    }
    slowest = max(workers, key=lambda worker: before[worker.rank])
    share = before[slowest.rank] / report.seconds
    if share > _START:
        name, seconds = max(
            ((name, s) for name, s in slowest.seconds.items() if name not in ("train", "result")),
            key=lambda each: each[1],
        )
        yield (
            share / 2,  # less weight, because longer training has the same start
            f"The start: rank {slowest.rank} began to train after {before[slowest.rank]:.1f} of {report.seconds:.1f} "
            f"s; the longest phase before was {name!r} with {seconds:.1f} s.",
        )
