"""Errors of the runner, as estimators raise them."""

import pytest

from spark_tensorflow_distributor import ClusterError, TrainingFailedError
from spark_tensorflow_distributor.ml.running import naming_params


def test_errors_name_params_instead_of_arguments():
    with (
        pytest.raises(ClusterError, match=r"^Use numSlots=2, useGpu=False or the setting my\.num_slots\.$"),
        naming_params(),
    ):
        raise ClusterError("Use num_slots=2, use_gpu=False or the setting my.num_slots.")
    failure = TrainingFailedError("num_slots = 2 in the user's program")
    failure.__notes__ = ["all max_restarts=2 restarts are used up"]
    with pytest.raises(TrainingFailedError, match="num_slots = 2") as caught, naming_params():
        raise failure
    assert caught.value.__notes__ == ["all maxRestarts=2 restarts are used up"]
