"""Results on the driver."""

import errno
import os
import pickle

import pytest

from spark_tensorflow_distributor import ResultNotLoadedError, SerializationError
from spark_tensorflow_distributor.runtime.driver.result import load_result
from spark_tensorflow_distributor.runtime.results import RescuedWeights


def test_a_result_is_loaded_from_its_chunks():
    data = pickle.dumps({"a": [1, 2]})
    assert load_result([data[:7], data[7:]]) == {"a": [1, 2]}
    assert load_result([]) is None


def test_a_result_that_cannot_be_loaded_is_kept():
    data = b"cmissing_module\nThing\n."
    with pytest.raises(ResultNotLoadedError, match=r"No module named 'missing_module'.*kept in the file /") as raised:
        load_result([data[:5], data[5:]])
    error = raised.value
    assert isinstance(error, SerializationError)
    assert error.path in str(error)
    with open(error.path, "rb") as file:
        assert file.read() == error.data == data
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.data, again.path) == (str(error), data, error.path)
    os.unlink(error.path)


def test_the_weights_of_a_model_that_cannot_be_pickled_are_kept():
    with pytest.raises(ResultNotLoadedError, match=r"cannot be pickled: no config\. The weights .*\.npz") as raised:
        load_result(
            [pickle.dumps(RescuedWeights("The function returned a Model, which cannot be pickled: no config.", b"zip"))]
        )
    with open(raised.value.path, "rb") as file:
        assert file.read() == b"zip"
    os.unlink(raised.value.path)


def test_a_full_disk_loses_nothing(monkeypatch):
    def no_space(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", no_space)
    with pytest.raises(ResultNotLoadedError, match=r"kept in this error's \.data") as raised:
        load_result([b"cmissing_module\nThing\n."])
    assert raised.value.path == ""
    assert raised.value.data
