"""The driver's log messages during a launch."""

import logging
import time
from types import SimpleNamespace

from spark_tensorflow_distributor.runtime.driver.callbacks import CallbackList
from spark_tensorflow_distributor.runtime.driver.control import RunControl
from spark_tensorflow_distributor.runtime.driver.epochs import EpochEvents
from spark_tensorflow_distributor.runtime.driver.launch import Launch
from spark_tensorflow_distributor.runtime.driver.report import RunReport


def test_missing_ranks_are_logged_every_half_minute(caplog):
    run_plan, config = SimpleNamespace(uses_sockets=True), SimpleNamespace(start_timeout=600)
    spec = SimpleNamespace(world_size=4, frames=(), config=config, plan=run_plan)
    launch = Launch(spec, None, None, None, EpochEvents(RunReport(4, 4), 0, CallbackList(), RunControl()))
    now = time.monotonic()

    def come(rank):
        launch._group.connect(rank, {"rank": rank}, now)
        launch._group.receive(rank, {"type": "join", "member": {"rank": rank, "host": "h"}}, now)

    launch._name_missing(now + 100)  # no rank has connected: another hint is due then
    come(2)
    for second in range(100, 160):
        launch._name_missing(now + second)
    assert [record.getMessage() for record in caplog.records] == [
        "Waiting for ranks 0, 1, 3: 1 of 4 workers have connected. Giving up after start_timeout=600 s."
    ]
    come(0)
    come(1)
    launch._name_missing(now + 170)
    assert caplog.records[-1].getMessage().startswith("Waiting for rank 3: 3 of 4")
    come(3)
    launch._name_missing(now + 300)
    assert len(caplog.records) == 2


def test_no_rank_is_named_as_missing_once_all_have_connected(caplog):
    run_plan, config = SimpleNamespace(uses_sockets=True), SimpleNamespace(start_timeout=600)
    spec = SimpleNamespace(world_size=40, frames=(), config=config, plan=run_plan)
    launch = Launch(spec, None, None, None, EpochEvents(RunReport(40, 40), 0, CallbackList(), RunControl()))
    now = time.monotonic()
    launch._group.connect(39, {"rank": 39}, now)
    launch._name_missing(now + 40)
    assert "Waiting for ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...: 0 of 40" in caplog.records[-1].getMessage()
    launch._group.uses_all_gather = True  # the ranks exchange their addresses in Spark's allGather
    for rank in range(40):
        launch._group.receive(rank, {"type": "join", "member": {"rank": rank, "host": "h"}}, now)
    launch._name_missing(now + 100)
    assert len(caplog.records) == 1


def test_the_log_says_where_training_resumed_as_the_worker_does(caplog):
    caplog.set_level(logging.INFO)
    run_plan, config = SimpleNamespace(uses_sockets=True), SimpleNamespace(start_timeout=600)
    spec = SimpleNamespace(world_size=2, frames=(), config=config, plan=run_plan, attempt=1)
    launch = Launch(spec, None, None, None, EpochEvents(RunReport(2, 2), 0, CallbackList(), RunControl()))
    place = {"fit": 0, "epoch": 3, "step": 0}
    launch._show(0, "resumed", {"type": "resumed", **place, "complete": True})
    launch._show(0, "resumed", {"type": "resumed", **place, "complete": False})
    complete, record = caplog.records
    assert complete.getMessage() == "Restored fit() 1, which was complete."
    assert record.getMessage() == "Resumed fit() 1 at epoch 4, step 0."
    assert (record.name, record.rank, record.attempt) == ("spark_tensorflow_distributor.run", 0, 1)
