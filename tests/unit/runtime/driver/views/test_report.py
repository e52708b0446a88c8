"""How a report is shown: as text, as a page, as a trace, in words."""

import gzip
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner, RunReport, WorkerFailure, WorkerReport
from spark_tensorflow_distributor.runtime.driver.record import AttemptReport
from spark_tensorflow_distributor.runtime.driver.views import svg
from spark_tensorflow_distributor.runtime.driver.views.curves import charts_of


def worker(rank, train=20.0, *, host="h", reading=0.0, collectives=0.0, loop=None, count=100, **changes):
    loop = train if loop is None else loop
    facts = {
        "seconds": {"start": 1.0, "meet": 0.5, "import": 4.0, "strategy": 0.5, "train": train},
        "peak_rss": 512 << 20,
        "exit": "ok",
        "times": {"steps": count, "loop": loop, "reading": reading, "collectives": collectives, "bytes": 1 << 20},
        **changes,
    }
    return WorkerReport(rank, host, rank, **facts)


def entry(epoch, attempt=0, fit=0, speed=None, **logs):
    return {"fit": fit, "epoch": epoch, "logs": logs, "seconds": 1.0, "rows_per_second": speed, "attempt": attempt}


def restarted():
    place = {"fit": 0, "epoch": 2, "step": 7}
    failures = {
        1: WorkerFailure(1, "b", "lost", "This worker has been silent.", seconds=9.0, place=place),
        0: WorkerFailure(0, "a", "peer", "Rank 1 failed", traceback="<b>Traceback</b>", seconds=9.5),
    }
    first = AttemptReport(0, 10.0, {0: worker(0)}, failures, 1, began=0.0)
    second = AttemptReport(1, 20.0, {0: worker(0), 1: worker(1)}, {}, None, resumed=({**place, "step": 5},), began=12.0)
    history = [entry(0, loss=1.0, val_loss=1.2), entry(1, loss=0.5, val_loss=0.7), entry(2, 1, loss=0.25, val_loss=0.6)]
    return RunReport(
        2,
        2,
        32.0,
        True,
        attempts=[first, second],
        history=history,
        function="train",
        status="succeeded",
        started_at=1000.0,
    )


class Page(HTMLParser):
    """Collects a page's elements and text; fails on elements that are not closed in order."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_text_tells_what_was_lost_and_where_training_resumed():
    lines = str(restarted()).splitlines()
    assert lines[0] == "Run succeeded after 32.0 s, 2 attempt(s), 2 worker(s)"
    assert lines[1] == "Attempt 1, 10.0 s: rank 1 @ b was lost in epoch 3, after step 7: This worker has been silent."
    assert lines[2] == "Attempt 2, 20.0 s: resumed at epoch 3, after step 5; succeeded"
    assert lines[-1] == "Last epoch: fit 1, epoch 3: loss=0.25, val_loss=0.6"
    assert repr(restarted()) == (
        "<RunReport of train: succeeded after 32.0 s, 2 attempts, 2 workers, loss=0.25, val_loss=0.6>"
    )


def test_the_page_hides_the_frames_of_the_library_and_says_nothing_twice():
    traceback = (
        'Traceback (most recent call last):\n  File "<spark_tensorflow_distributor>/runtime/trainer/main.py", line 9, '
        'in train\n    value = call()\n  File "train.py", line 5, in train\n    fail()\nValueError: boom\n'
    )
    failure = WorkerFailure(0, "a", "exception", "ValueError: boom", traceback=traceback)
    page = Page(RunReport(1, 1, attempts=[AttemptReport(0, failures={0: failure}, root_cause=0)])._repr_html_())
    assert 'File "train.py", line 5' in page.text
    assert "trainer/main.py" not in page.text
    assert page.text.count("ValueError: boom\n") == 1


def test_failures_without_a_root_cause_are_listed_by_rank():
    report = restarted()
    report.attempts[0] = replace(report.attempts[0], root_cause=None)
    assert str(report).splitlines()[1] == "Attempt 1, 10.0 s: ranks 0, 1 failed"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("running", "Run in progress,"),
        ("failed", "Run failed after 0.0 s,"),
        ("interrupted", "Run was interrupted after 0.0 s,"),
        ("cancelled", "Run was cancelled after 0.0 s,"),
    ],
)
def test_the_text_tells_how_the_run_ended(status, text):
    assert str(RunReport(1, 1, status=status)).startswith(text)
    assert status in Page(RunReport(1, 1, status=status)._repr_html_()).text


def test_the_page_is_self_contained_and_complete(tmp_path):
    report = restarted()
    report.error = "<script>alert(1)</script>"
    report.settings = {"num_slots": 2, "env": ["A"]}
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"(src|href|@import|url\()", re.sub(r'xmlns="[^"]*"', "", text))
    for expected in ("train", "succeeded", "resumed at epoch 3, after step 5", "loss", "rank 1 @ b", "num_slots"):
        assert expected in page.text
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "<b>Traceback</b>" in page.text
    lines = [attributes for tag, attributes in page.elements if tag == "polyline"]
    assert len(lines) == 2  # loss and val_loss in one chart
    assert len([a for tag, a in page.elements if tag == "rect" and a.get("fill") == "#009e73"]) == 3  # phases "train"
    assert report._repr_html_() in text


@pytest.mark.parametrize("report", [RunReport(1, 1), RunReport(2, 2, attempts=[AttemptReport(0)])])
def test_a_report_without_numbers_can_be_shown(report, tmp_path):
    Page(report._repr_html_())
    report.to_perfetto(tmp_path / "trace.json")
    assert report.advice == []
    assert str(report)


def test_a_report_of_many_workers_stays_small():
    workers = {rank: worker(rank, log_tail=("x" * 200,) * 50) for rank in range(1000)}
    failures = {rank: WorkerFailure(rank, "h", "peer", "m" * 500, seconds=1.0) for rank in range(1000)}
    history = [entry(None, 0, None, loss=1.0) | {"epoch": step} for step in range(20_000)]
    report = RunReport(1000, 1000, 30.0, attempts=[AttemptReport(0, 30.0, workers, failures, 900)], history=history)
    text = report._repr_html_()
    assert len(text) < 400_000
    assert "900 @ h" in text
    assert "and 967 other ranks" in text


def test_charts_pair_training_and_validation_and_mark_attempts():
    history = [entry(0, loss=2.0, val_loss=3.0, speed=100.0), entry(1, 1, loss=1.0, lr=0.1, speed=90.0)]
    history += [entry(0, 1, fit=1, loss=5.0), entry(100, 1, fit=None, reward=1.0)]
    charts = {chart.title: chart for chart in charts_of(history)}
    assert list(charts) == ["loss (fit 1)", "lr (fit 1)", "rows per second (fit 1)", "loss (fit 2)", "reward"]
    loss = charts["loss (fit 1)"]
    assert [(series.name, list(series.points)) for series in loss.series] == [
        ("training", [(1.0, 2.0), (2.0, 1.0)]),
        ("validation", [(1.0, 3.0)]),
    ]
    assert loss.marks == [(2.0, "attempt 2")]
    assert charts["reward"].x_name == "step"
    assert all("<svg" in chart.svg() for chart in charts.values())


def test_values_that_are_not_finite_leave_a_gap():
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, 1.0)]
    chart = svg.Chart("loss", "epoch", [svg.Series("a", points, "red")])
    assert chart.svg().count("<polyline") == 2
    assert "nan" not in chart.svg()
    assert svg.Chart("loss", "epoch", [svg.Series("a", [(0.0, math.nan)], "red")]).svg() == ""
    assert "<svg" in svg.Chart("one", "epoch", [svg.Series("a", [(1.0, 0.0)], "red")]).svg()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.34), (-5, 2e6), (1e-9, 3e-9), (99, 101)])
def test_ticks_are_few_round_and_inside(low, high):
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * abs(low) <= each <= high * (1 + 1e-9) for each in found)


def test_thinning_keeps_the_extremes():
    points = [(float(x), 100.0 if x == 777 else math.sin(x)) for x in range(5000)]
    thin = svg.thinned(points)
    assert len(thin) <= 620
    assert (777.0, 100.0) in thin
    assert list(thin) == sorted(thin)


def test_the_trace_has_phases_steps_and_failures(tmp_path):
    report = restarted()
    step = (3, 1015.0, 0.5, 0.1, 0.15)
    report.attempts[1].workers[1] = worker(1, host="b", seconds={"start": 2.0, "train": 5.0}, steps=(step,))
    report.to_perfetto(tmp_path / "trace.json.gz")
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    slices = {(e["pid"], e["name"]): (e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert slices[1, "start"] == (12_000_000, 2_000_000)
    assert slices[1, "train"] == (14_000_000, 5_000_000)
    assert slices[1, "step 3"] == (15_000_000, 500_000)
    assert slices[1, "waiting for rows"] == (15_000_000, 100_000)
    assert slices[1, "computing"] == (15_100_000, 250_000)
    assert slices[1, "collectives"] == (15_350_000, 150_000)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "rank 0 @ a", 1: "rank 1 @ b"} or names == {0: "rank 0 @ h", 1: "rank 1 @ b"}
    assert [e["name"] for e in events if e["ph"] == "i"] == [
        "peer: Rank 1 failed",
        "lost: This worker has been silent.",
    ]


def advice(*workers, seconds=30.0, attempts=None):
    report = RunReport(len(workers), len(workers), seconds, True, attempts=attempts or [])
    report.attempts.append(AttemptReport(0, seconds, {w.rank: w for w in workers}))
    return report.advice


def test_advice_names_the_limit_with_its_number():
    (text,) = advice(worker(0, reading=2.0), worker(1, reading=8.0))
    assert text.startswith("Reading: rank 1 waited for its next batch in 40% of the time of its steps (8.0 of 20.0 s)")
    (text,) = advice(worker(0, collectives=9.0, host="a"), worker(1, collectives=8.0, host="b"))
    assert "at least 40% of its step time in collectives between 2 hosts (rank 1: 8.0 of 20.0 s" in text
    assert "gradient_compression" in text
    (text,) = advice(worker(0, collectives=12.0), worker(1, collectives=12.0), worker(2, collectives=2.0, host="slow"))
    assert "rank 2 @ slow takes 180.0 ms for its part of a step, the others 80.0 ms" in text
    assert "wait for it in 50% of the time" in text


def test_no_advice_where_nothing_stands_out_or_little_was_measured():
    assert advice(worker(0, reading=1.0, collectives=2.0), worker(1, reading=1.0, collectives=2.0)) == []
    assert advice(worker(0, reading=0.9, loop=1.0), worker(1, reading=0.9, loop=1.0)) == []
    assert advice(worker(0, reading=9.0, count=5)) == []


def test_advice_on_lost_time_and_on_the_start():
    lost, start = advice(worker(0, train=2.0, loop=1.0), seconds=11.0, attempts=[AttemptReport(0, 6.0)])
    assert lost.startswith("Failures: 1 of 2 attempts failed, and took 6 of 11 s.")
    assert start.startswith("The start: rank 0 began to train after 6.0 of 11.0 s")
    assert "'import' with 4.0 s" in start


def test_a_runner_says_what_it_is_and_keeps_secrets():
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, env={"TOKEN": "secret"})
    assert repr(runner) == "<MirroredStrategyRunner(num_slots=2, use_gpu=False, env='TOKEN')>"
    runner.report = restarted()
    assert "; last run: succeeded after 32.0 s, 2 attempts" in repr(runner)
