"""Labels that do not fit the model are found."""

import numpy as np
import pytest

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.data.columns import Column
from spark_tensorflow_distributor.inference.features import Input, Inputs
from spark_tensorflow_distributor.ml.checks import (
    call_model_fn,
    check_classes,
    check_features,
    check_input_names,
    check_label_width,
    check_rows,
    check_weights,
)


@pytest.mark.parametrize(("given", "width"), [(2, 2), (None, 2), (2, None)])
def test_a_label_that_fits(given, width):
    assert check_label_width("y", given, width) is None


def test_a_label_of_another_width():
    with pytest.raises(DataError, match="'y' has 3 numbers per row, but the model's output has 1"):
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


def test_weights():
    assert check_weights("The weight column 'w'", np.array([0.0, 2.5])) is None
    for wrong, text in [(-1.0, "-1"), (np.nan, "nan")]:
        with pytest.raises(DataError, match=f"The weight column 'w' contains {text}; weights must not be negative"):
            check_weights("The weight column 'w'", np.array([1.0, wrong]))


AGE, KIND = Column("age", ("age",), "integer", "int32"), Column("kind", ("kind",), "string", "string")
DAY, TAGS = Column("day", ("day",), "date", "int32"), Column("tags", ("tags",), "array<string>", "string", 1)
ONE = Inputs("tensor", (Input("x", (2,), "float32"),))
TWO = Inputs("dict", (Input("age", (1,), "float32"), Input("kind", (), "string")))


@pytest.mark.parametrize(
    ("columns", "inputs", "is_stacked", "text"),
    [
        (
            [AGE, KIND],
            ONE,
            True,
            "'kind' is of type string, but .* takes numbers. .*StringIndexer",
        ),
        ([AGE, KIND], Inputs("unknown"), True, r"name='kind', dtype='string'\) with StringLookup or TextVectorization"),
        ([AGE, DAY], ONE, True, "'day' is of type date, .* Convert it to a number in Spark"),
        ([TAGS], ONE, False, r"'tags' .* type array<string>, but the model's input is 'x' \[batch, 2\] float32"),
        ([KIND], ONE, False, "Convert it to numbers in Spark"),
        ([AGE], Inputs("tensor", (Input("x", (), "string"),)), False, "'age' .* type integer.*Cast it to string"),
    ],
)
def test_columns_of_the_wrong_type_are_named_with_a_remedy(columns, inputs, is_stacked, text):
    with pytest.raises(DataError, match=text):
        check_features(columns, inputs, is_stacked=is_stacked)


@pytest.mark.parametrize(
    ("columns", "inputs", "is_stacked"),
    [([AGE, AGE], ONE, True), ([KIND, AGE], TWO, False), ([KIND], Inputs("unknown"), False), ([DAY], ONE, False)],
)
def test_columns_that_suit_their_inputs(columns, inputs, is_stacked):
    check_features(columns, inputs, is_stacked=is_stacked)


@pytest.mark.parametrize(
    ("names", "is_single", "text"),
    [
        (["features"], True, "2 inputs .*, but featuresCol gives one tensor. Set inputCols"),
        (["age"], False, "The input 'kind' gets no column"),
        (["age", "kinds"], False, r"The input 'kind' gets no column \(did you mean 'kinds'"),
        (["age", "kind", "id"], False, "The column 'id' is not an input"),
    ],
)
def test_names_that_are_no_inputs(names, is_single, text):
    with pytest.raises(DataError, match=text):
        check_input_names(names, TWO, is_single=is_single, by_order=False)


def test_names_that_may_be_matched_to_inputs_by_order():
    pair = Inputs("list", TWO.inputs)
    check_input_names(["a", "b"], pair, is_single=False, by_order=True)
    check_input_names(["kind", "age"], TWO, is_single=False, by_order=False)
    check_input_names(["other"], ONE, is_single=True, by_order=False)
    for inputs, by_order in ((pair, False), (TWO, True)):
        with pytest.raises(DataError, match="The input 'age' gets no column"):
            check_input_names(["a", "b"], inputs, is_single=False, by_order=by_order)


@pytest.mark.parametrize(
    ("what", "is_split", "text"),
    [
        ("train", False, "no rows to train on: the DataFrame is empty. Did"),
        ("train", True, "no rows to train on: the DataFrame is empty, or validationIndicatorCol is true for all"),
        ("validate", True, "no rows to validate on: validationIndicatorCol is true for no row"),
        ("evaluate", False, "no rows to evaluate on: the DataFrame is empty"),
    ],
)
def test_no_rows(what, is_split, text):
    check_rows(what, 1, is_split=is_split)
    with pytest.raises(DataError, match=text):
        check_rows(what, 0, is_split=is_split)


def test_a_model_function_that_fails_without_a_number_of_features():
    def build(num_features):
        return 2 * num_features

    assert call_model_fn(build, {"num_features": 2}, [KIND]) == 4
    with pytest.raises(
        DataError, match=r"modelFn failed: TypeError.* num_features=None, because the feature column 'kind'"
    ):
        call_model_fn(build, {"num_features": None}, [AGE, KIND])
    with pytest.raises(TypeError):
        call_model_fn(build, {"num_features": None}, [AGE])
