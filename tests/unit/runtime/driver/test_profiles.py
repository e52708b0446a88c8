"""Resource profiles, with stand-ins for the DataFrames of two versions of PySpark."""

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.runtime.driver.spark import _check_profiles


class Frame35:
    def mapInArrow(self, func, schema, barrier=False): ...


class Frame4:
    def mapInArrow(self, func, schema, barrier=False, profile=None): ...


def test_pyspark_without_profiles_for_dataframes_is_refused_with_advice():
    _check_profiles(Frame4())
    with pytest.raises(ConfigurationError, match=r"needs PySpark 4.* and set spark\.task\.cpus"):
        _check_profiles(Frame35())
