"""Columns from schemas, and NumPy arrays from Arrow arrays."""

import numpy as np
import pytest

from spark_tensorflow_distributor import ConfigurationError, DataError
from spark_tensorflow_distributor.data.columns import Column, by_column, columns_of, nearest, split_array

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
def test_unsupported_types_are_rejected_by_name(kind, message):
    with pytest.raises(DataError, match=message) as caught:
        columns_of(schema(good="long", bad=kind), "The DataFrame 'train'")
    assert "'train'" in str(caught.value)
    assert "'bad'" in str(caught.value)
    assert "rop it (DataFrame.drop)" in str(caught.value)


def test_a_schema_needs_columns_with_distinct_names():
    fields = [{"name": "a", "type": "long"}, {"name": "a", "type": "long"}]
    with pytest.raises(DataError, match="two columns named 'a'"):
        columns_of({"fields": fields}, "It")
    with pytest.raises(DataError, match="no columns"):
        columns_of({"fields": []}, "It")


def test_nearest_name():
    assert nearest("Lable", ["x", "label"]) == " (did you mean 'label'?)"
    assert nearest("zzz", ["x", "label"]) == ""
    assert nearest("features", ["late", "label"]) == ""


def test_values_by_column():
    assert by_column("fill_value", None, ["a", "b"]) == {}
    assert by_column("fill_value", 0, ["a", "b"]) == {"a": 0, "b": 0}
    assert by_column("fill_value", {"b": 1}, ["a", "b"]) == {"b": 1}
    with pytest.raises(ConfigurationError, match=r"fill_value names 'ag', which is not a requested column \(did you"):
        by_column("fill_value", {"ag": 1}, ["age", "b"])


def numbers(dtype, depth=0):
    return Column("c", ("c",), dtype, dtype, depth)


def test_numbers_keep_their_values_next_to_nulls():
    large = 2**53 + 1  # not representable as float64
    found = split_array(pa.array([large, None, 3])[1:], numbers("int64"))
    assert found.data[1] == 3
    assert found.nulls.tolist() == [True, False]
    assert split_array(pa.array([large, None]), numbers("int64")).data[0] == large


def test_contiguous_numbers_are_not_copied():
    array = pa.array(np.arange(10, dtype=np.float32))
    found = split_array(array[3:], numbers("float32"))
    assert found.data.__array_interface__["data"][0] == array.buffers()[1].address + 12


def test_booleans_become_bytes():
    found = split_array(pa.array([True, None, False])[1:], numbers("bool"))
    assert found.data.dtype == np.uint8
    assert found.data[1] == 0
    assert found.nulls.tolist() == [True, False]


def test_nested_arrays_have_lengths_at_every_level():
    array = pa.array([[[9]], [[1, 2], []], None, [[3]]], pa.list_(pa.list_(pa.int32())))[1:]
    found = split_array(array, numbers("int32", 2))
    assert [level.tolist() for level in found.lengths] == [[2, 0, 1], [2, 0, 1]]
    assert found.data.tolist() == [1, 2, 3]
    assert found.nulls.tolist() == [False, True, False]
    assert found.inner_nulls == 0


def test_nulls_inside_arrays_are_counted():
    assert split_array(pa.array([[1, None], [None]], pa.list_(pa.int32())), numbers("int32", 1)).inner_nulls == 2


def test_values_of_null_arrays_are_left_out():
    offsets, values = pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4], pa.int32())
    array = pa.ListArray.from_arrays(offsets, values, mask=pa.array([True, False]))
    found = split_array(array, numbers("int32", 1))
    assert found.lengths[0].tolist() == [0, 2]
    assert found.data.tolist() == [3, 4]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_strings_become_bytes_and_lengths(kind):
    array = pa.array(["skipped", "ä", "", None, "bc"], pa.string()).cast(kind)[1:]
    found = split_array(array, Column("c", ("c",), "string", "string"))
    assert bytes(found.data) == "äbc".encode()
    assert found.lengths[0].tolist() == [2, 0, 0, 2]
    assert found.nulls.tolist() == [False, False, True, False]


def test_an_unexpected_arrow_type_is_named():
    with pytest.raises(DataError, match="'c' arrived as"):
        split_array(pa.array(["a"]), numbers("int64"))
