"""Labels that do not fit the model are found."""

import numpy as np
import pytest

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.ml.checks import check_classes, check_label_width


@pytest.mark.parametrize(("given", "width"), [(2, 2), (None, 2), (2, None)])
def test_a_label_that_fits(given, width):
    assert check_label_width("y", given, width) is None


def test_a_label_of_another_width():
    with pytest.raises(DataError, match="'y' has 3 numbers a row, but the model's output has 1"):
        check_label_width("y", 3, 1)


@pytest.mark.parametrize(
    ("labels", "limit", "text"),
    [
        ([0, 1.5], None, r"contains 1.5; .* from 0 to \.\.\."),
        ([0, -1], 2, "contains -1"),
        ([0, np.nan], 2, "contains nan"),
        ([1, 2], 2, r"contains 2; .* from 0 to 1 \(the model's classes\)"),
    ],
)
def test_labels_that_are_no_classes(labels, limit, text):
    with pytest.raises(DataError, match=text):
        check_classes("y", np.array(labels), limit)


def test_classes():
    assert check_classes("y", np.array([0.0, 2.0]), 3) is None
