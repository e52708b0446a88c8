"""Schemas and Arrow arrays, taken apart."""

import numpy as np
import pytest

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.data.columns import Column, columns_of, nearest, take_apart

pa = pytest.importorskip("pyarrow")


def schema(**types):
    return {"type": "struct", "fields": [{"name": name, "type": kind} for name, kind in types.items()]}


def array_of(kind):
    return {"type": "array", "elementType": kind, "containsNull": True}


def test_a_schema_becomes_columns():
    inner = {"type": "struct", "fields": [{"name": "city", "type": "string"}]}
    vector = {"type": "udt", "class": "org.apache.spark.ml.linalg.VectorUDT", "sqlType": {}}
    found = columns_of(
        schema(a="long", b="decimal(10,2)", c=inner, d=array_of(array_of("float")), v=vector, s="varchar(3)"), "It"
    )
    assert [(c.name, c.dtype, c.depth, c.travels_as) for c in found] == [
        ("a", "int64", 0, "long"),
        ("b", "float64", 0, "double"),
        ("c.city", "string", 0, "string"),
        ("d", "float32", 2, "array<array<float>>"),
        ("v", "float32", 1, "array<float>"),
        ("s", "string", 0, "string"),
    ]
    assert found[2].path == ("c", "city")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"type": "map", "keyType": "string", "valueType": "long"}, "tensors have no keys"),
        (array_of({"type": "struct", "fields": []}), "array of structs"),
        ("void", "every row is null"),
        ("interval year to month", "no fixed length"),
        ({"type": "udt", "class": "org.example.Own"}, "org.example.Own"),
        ("variant", "type variant"),
        (array_of({"type": "map"}), "tensors have no keys"),
    ],
)
def test_types_without_meaning_are_refused_by_name(kind, message):
    with pytest.raises(DataError, match=message) as caught:
        columns_of(schema(good="long", bad=kind), "The DataFrame 'train'")
    assert "'train'" in str(caught.value)
    assert "'bad'" in str(caught.value)


def test_names_have_to_be_single_and_there_has_to_be_one():
    fields = [{"name": "a", "type": "long"}, {"name": "a", "type": "long"}]
    with pytest.raises(DataError, match="two columns named 'a'"):
        columns_of({"fields": fields}, "It")
    with pytest.raises(DataError, match="no columns"):
        columns_of({"fields": []}, "It")


def test_the_nearest_name():
    assert nearest("Lable", ["x", "label"]) == "; did you mean 'label'?"
    assert nearest("zzz", ["x", "label"]) == ""


def numbers(dtype, depth=0):
    return Column("c", ("c",), dtype, dtype, depth)


def test_numbers_keep_their_values_beside_nulls():
    large = 2**53 + 1  # not a float64
    found = take_apart(pa.array([large, None, 3])[1:], numbers("int64"))
    assert found.data[1] == 3
    assert found.nulls.tolist() == [True, False]
    assert take_apart(pa.array([large, None]), numbers("int64")).data[0] == large


def test_no_copy_of_numbers_where_arrow_has_them_in_a_row():
    array = pa.array(np.arange(10, dtype=np.float32))
    found = take_apart(array[3:], numbers("float32"))
    assert found.data.__array_interface__["data"][0] == array.buffers()[1].address + 12


def test_truth_values_become_bytes():
    found = take_apart(pa.array([True, None, False])[1:], numbers("bool"))
    assert found.data.dtype == np.uint8
    assert found.data[1] == 0
    assert found.nulls.tolist() == [True, False]


def test_nested_arrays_have_lengths_at_each_level():
    array = pa.array([[[9]], [[1, 2], []], None, [[3]]], pa.list_(pa.list_(pa.int32())))[1:]
    found = take_apart(array, numbers("int32", 2))
    assert [level.tolist() for level in found.lengths] == [[2, 0, 1], [2, 0, 1]]
    assert found.data.tolist() == [1, 2, 3]
    assert found.nulls.tolist() == [False, True, False]
    assert found.inner_nulls == 0


def test_nulls_in_arrays_are_counted():
    assert take_apart(pa.array([[1, None], [None]], pa.list_(pa.int32())), numbers("int32", 1)).inner_nulls == 2


def test_values_under_a_null_are_left_out():
    offsets, values = pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4], pa.int32())
    array = pa.ListArray.from_arrays(offsets, values, mask=pa.array([True, False]))
    found = take_apart(array, numbers("int32", 1))
    assert found.lengths[0].tolist() == [0, 2]
    assert found.data.tolist() == [3, 4]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_texts_become_bytes_and_lengths(kind):
    array = pa.array(["skipped", "ä", "", None, "bc"], pa.string()).cast(kind)[1:]
    found = take_apart(array, Column("c", ("c",), "string", "string"))
    assert bytes(found.data) == "äbc".encode()
    assert found.lengths[0].tolist() == [2, 0, 0, 2]
    assert found.nulls.tolist() == [False, False, True, False]


def test_what_was_not_expected_is_named():
    with pytest.raises(DataError, match="'c' arrived as"):
        take_apart(pa.array(["a"]), numbers("int64"))
