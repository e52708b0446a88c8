"""The settings that the doctor checks."""

import pytest

from spark_tensorflow_distributor import DistributorError
from spark_tensorflow_distributor.cli import doctor
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.driver import plan

SETTINGS = {value for value in vars(plan).values() if str(value).startswith("tensorflow.spark.distributor.")}


def check(facts):
    """Do what the doctor does before it starts a job."""
    plan.make_plan(RunnerConfig(2, use_gpu=False), facts)
    doctor._check_settings(facts)


# An agent compares workerNetwork with its host's own networks.
@pytest.mark.parametrize("setting", sorted(SETTINGS - {plan.WORKER_NETWORK}))
def test_an_invalid_setting_of_this_library_is_refused(setting):
    with pytest.raises(DistributorError, match=setting):
        check(plan.ClusterFacts({setting: "nonsense"}, slots=2))
