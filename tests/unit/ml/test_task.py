"""What is sent to workers, and what functions of the user's are called with."""

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.ml.summary import TrainingSummary, history_by_metric
from spark_tensorflow_distributor.ml.task import arguments_for

OFFERED = {"num_features": 3, "train_data": "shard"}


def test_a_function_gets_its_params_and_what_it_names():
    assert arguments_for("modelFn", lambda units: units, {"units": 8}, OFFERED) == {"units": 8}
    assert arguments_for("modelFn", lambda num_features, *, units=1: 0, {}, OFFERED) == {"num_features": 3}
    assert arguments_for("modelFn", lambda **rest: 0, {"units": 8}, OFFERED) == {"units": 8}
    # A Param of the user's own comes first.
    assert arguments_for("modelFn", lambda num_features: 0, {"num_features": 5}, OFFERED) == {"num_features": 5}
    assert arguments_for("modelFn", dict, {"a": 1}, OFFERED) == {"a": 1}


@pytest.mark.parametrize("params", [{}, {"units": 1, "rate": 2}])
def test_a_function_that_cannot_be_called_so(params):
    def build(units):
        return units

    with pytest.raises(ConfigurationError, match=r"modelFn: build\(units\) cannot be called: .*units|rate"):
        arguments_for("modelFn", build, params, OFFERED)


def test_the_history_is_that_of_the_last_fit():
    entries = [
        {"fit": 0, "epoch": 0, "logs": {"loss": 3}},
        {"fit": None, "epoch": 5, "logs": {"own": 1}},
        {"fit": 1, "epoch": 0, "logs": {"loss": 2, "auc": 0.5}},
        {"fit": 1, "epoch": 1, "logs": {"loss": 1, "auc": 0.75}},
    ]
    history = history_by_metric(entries)
    assert history == {"loss": [2.0, 1.0], "auc": [0.5, 0.75]}
    summary = TrainingSummary(history, entries)
    assert (summary.totalIterations, summary.objectiveHistory) == (2, [2.0, 1.0])
    assert history_by_metric([]) == {}
    assert TrainingSummary().totalIterations == 0
