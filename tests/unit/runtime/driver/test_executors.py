"""When a run waits for executors."""

import pytest

from spark_tensorflow_distributor.runtime.driver.executors import may_grow

WAITING = "spark.scheduler.maxRegisteredResourcesWaitingTime"


@pytest.mark.parametrize(
    ("conf", "executors", "age", "expected"),
    [
        ({"spark.master": "local[4]"}, 0, 0, False),
        ({"spark.master": "spark://h:7077"}, 0, 9999, True),  # until start_timeout
        ({"spark.master": "yarn", "spark.executor.instances": "3"}, 2, 9999, True),
        ({"spark.master": "yarn", "spark.executor.instances": "3"}, 3, 9999, False),
        ({"spark.master": "yarn"}, 1, 29, True),
        ({"spark.master": "yarn"}, 1, 31, False),
        ({"spark.master": "yarn", WAITING: "2min"}, 1, 110, True),
        ({"spark.master": "yarn", WAITING: "500"}, 1, 0.4, True),
        ({"spark.master": "yarn", WAITING: "500"}, 1, 0.6, False),
        ({"spark.master": "yarn", WAITING: "1h"}, 1, 3599, True),
        ({"spark.master": "yarn", WAITING: "soon"}, 1, 29, True),
    ],
)
def test_more_executors_can_be_expected(conf, executors, age, expected):
    assert may_grow(conf, executors, age) is expected
