"""Weights survive their way through bytes; damaged ones are noticed."""

import numpy as np
import pytest

from spark_tensorflow_distributor import SerializationError
from spark_tensorflow_distributor.ml.groups.weights import pack_weights, unpack_weights

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64), np.zeros((0, 2), np.float16)]


def test_round_trip():
    found = unpack_weights(pack_weights(ARRAYS), ARRAYS)
    for each, expected in zip(found, ARRAYS, strict=True):
        assert each.dtype == expected.dtype
        np.testing.assert_array_equal(each, expected)


def test_a_transposed_array_keeps_its_values():
    array = ARRAYS[0].T
    np.testing.assert_array_equal(unpack_weights(pack_weights([array]), [array])[0], array)


CHANGES = [lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda data: b"", lambda data: b"x" + data]


@pytest.mark.parametrize("change", CHANGES)
def test_damaged(change):
    with pytest.raises(SerializationError, match="damaged or belong to another model"):
        unpack_weights(change(pack_weights(ARRAYS)), ARRAYS)
