"""The trace, against the Trace Event Format and what Perfetto makes of it."""

import gzip
import itertools
import json
from collections import defaultdict

import pytest

from spark_tensorflow_distributor import RunReport, WorkerFailure, WorkerReport
from spark_tensorflow_distributor.runtime.driver.record import AttemptReport

# By kind of event: the fields that the format requires, and those that it allows.
REQUIRED = {"X": {"name", "ts", "dur", "pid", "tid"}, "M": {"name", "pid", "args"}, "i": {"name", "ts", "pid", "s"}}
ALLOWED = {"X": {"args", "cat"}, "M": {"tid", "ts"}, "i": {"tid", "args"}}
METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index"}


def reject(constant):
    raise ValueError(f"{constant} is not JSON")


def read_strictly(path):
    """Return the events of a trace; fail on everything that a reader need not accept, or would drop."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "strict")
    trace = json.loads(text, parse_constant=reject)
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    slices, processes, threads = defaultdict(list), set(), set()
    for event in trace["traceEvents"]:
        kind = event.pop("ph")
        assert REQUIRED[kind] <= set(event) <= REQUIRED[kind] | ALLOWED[kind] | {"ph"}
        assert isinstance(event["name"], str)
        assert event["name"]
        assert all(type(event[name]) is int for name in ("pid", "tid") if name in event)
        assert all(type(event[name]) is int and event[name] >= 0 for name in ("ts", "dur") if name in event)
        event["ph"] = kind
        if kind == "X":
            slices[event["pid"], event["tid"]].append(event)
        elif kind == "M":
            assert set(event["args"]) == {METADATA[event["name"]]}
            (threads if "tid" in event else processes).add((event["pid"], event.get("tid")))
        else:
            assert event["s"] in ("g", "p", "t")
    assert {pid for pid, _ in slices} <= {pid for pid, _ in processes}
    assert set(slices) <= threads
    for events in slices.values():
        for before, after in itertools.pairwise(events):
            assert before["ts"] + before["dur"] <= after["ts"], (before, after)
    return trace["traceEvents"]


def report(*workers, failures=None, started_at=1000.0, began=0.0):
    attempt = AttemptReport(0, 20.0, {w.rank: w for w in workers}, failures or {}, began=began)
    return RunReport(2, 2, 20.0, attempts=[attempt], started_at=started_at)


def steps(began, count, seconds=0.0123457):
    return tuple((n + 1, round(began + n * seconds, 6), seconds, seconds / 3, seconds / 7) for n in range(count))


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_whole_run_is_a_valid_trace(tmp_path, name):
    seconds = {"start": 1 / 3, "meet": 1 / 7, "import": 4.0, "train": 2 / 3}
    times = {"steps": 200, "loop": 2.0, "reading": 0.1, "collectives": 0.2, "bytes": 5}
    made = report(
        WorkerReport(0, "höst", 0, seconds=seconds, steps=steps(1004.5, 200), times=times),
        WorkerReport(1, "b", 1, seconds=seconds, steps=steps(1004.5, 200), times=times),
        failures={2: WorkerFailure(2, "c", "lost", "silent\nfor long", seconds=99.0)},
        began=1 / 9,
    )
    # A relaunch, and a step that seems to begin before the last one has ended: its clock was adjusted.
    made.attempts.append(AttemptReport(1, 5.0, dict(made.attempts[0].workers), began=10.0))
    made.to_perfetto(tmp_path / name)
    events = read_strictly(tmp_path / name)
    assert sum(event["name"] == "step 7" for event in events) == 4
    assert sum(event["ph"] == "i" for event in events) == 1
    inside = [event["name"] for event in events if event["ph"] == "X" and event["tid"] == 3]
    assert set(inside) == {"waiting for rows", "computing", "collectives"}


def test_a_clock_that_is_behind_gives_no_negative_times(tmp_path):
    worker = WorkerReport(0, "a", 0, seconds={"train": 5.0}, steps=steps(990.0, 3))
    report(worker).to_perfetto(tmp_path / "trace.json")
    events = read_strictly(tmp_path / "trace.json")
    assert min(event["ts"] for event in events if "ts" in event) == 0
    (train,) = [event for event in events if event["name"] == "train"]
    assert (train["ts"], train["dur"]) == (10_000_000, 5_000_000)


def test_collectives_that_are_not_measured_are_part_of_the_rest(tmp_path):
    worker = WorkerReport(
        0, "a", 0, times={"steps": 1, "loop": 1.0, "reading": 0.25}, steps=((1, 1001.0, 1.0, 0.25, 0),)
    )
    report(worker).to_perfetto(tmp_path / "trace.json")
    events = {event["name"]: event for event in read_strictly(tmp_path / "trace.json")}
    assert events["computing and collectives"]["dur"] == 750_000
    assert events["step 1"]["args"] == {"waiting_for_rows_ms": 250.0, "computing_and_collectives_ms": 750.0}
    assert "collectives" not in events
