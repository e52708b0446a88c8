"""What the driver says while a launch goes on."""

import time
from types import SimpleNamespace

from spark_tensorflow_distributor.runtime.driver.launch import Launch


def test_who_has_not_come_is_named_every_half_minute(caplog):
    spec = SimpleNamespace(world_size=4, frames=(), config=SimpleNamespace(start_timeout=600))
    launch = Launch(spec, None, None, None)
    now = time.monotonic()

    def come(rank):
        launch._group.connect(rank, {"rank": rank}, now)
        launch._group.receive(rank, {"type": "join", "member": {"rank": rank, "host": "h"}}, now)

    launch._name_missing(now + 100)  # nobody has come: another hint is due then
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
