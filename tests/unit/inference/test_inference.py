"""The pure parts of batch inference, without TensorFlow and a JVM."""

import io
import json
import zipfile

import numpy as np
import pytest

from spark_tensorflow_distributor import ConfigurationError, DataError, predict
from spark_tensorflow_distributor.inference import model as models
from spark_tensorflow_distributor.inference.features import (
    Input,
    Inputs,
    check_stackable,
    feature_names,
    match_inputs,
    reshape_dims,
    select_columns,
)
from spark_tensorflow_distributor.inference.outputs import Output, output_names, spark_type, type_from_json
from spark_tensorflow_distributor.inference.rows import Rows, rows_from_arrow, rows_to_arrow, stack

SCHEMA = {
    "fields": [
        {"name": "age", "type": "integer"},
        {"name": "outer", "type": {"type": "struct", "fields": [{"name": "inner", "type": "float"}]}},
        {"name": "tags", "type": {"type": "map", "keyType": "string", "valueType": "string"}},
        {"name": "image", "type": {"type": "array", "elementType": "float", "containsNull": True}},
        {"name": "city", "type": "string"},
    ]
}
A, B = Input("a", (3,), "float32"), Input("b", (1,), "string")


def test_columns_are_selected_and_others_may_have_any_type():
    assert [column.name for column in select_columns(SCHEMA, ["outer.inner", "age"])] == ["outer.inner", "age"]
    with pytest.raises(DataError, match=r"no column 'aeg' \(did you mean 'age'"):
        select_columns(SCHEMA, ["aeg"])
    with pytest.raises(DataError, match=r"did you mean 'outer\.inner'"):
        select_columns(SCHEMA, ["outer.iner"])
    with pytest.raises(DataError, match=r"is a struct. Name its fields: outer\.inner"):
        select_columns(SCHEMA, ["outer"])
    with pytest.raises(DataError, match="map_keys"):
        select_columns(SCHEMA, ["tags"])


def test_feature_names():
    assert feature_names("a") == ("a",)
    for wrong in ([], None, [1], ["a", "a"]):
        with pytest.raises(ConfigurationError, match="feature_columns"):
            feature_names(wrong)


def test_only_numbers_are_stacked():
    check_stackable(select_columns(SCHEMA, ["age", "image", "outer.inner"]))
    with pytest.raises(DataError, match="column 'city' is of type string"):
        check_stackable(select_columns(SCHEMA, ["age", "city"]))


def test_features_match_inputs_by_name_or_in_order():
    two = Inputs("list", (A, B))
    assert match_inputs(["b", "a"], False, two) == [1, 0]
    assert match_inputs(["x", "y"], False, two) == [0, 1]
    assert match_inputs(["x"], True, Inputs("tensor", (A,))) == [0]
    assert match_inputs(["x"], False, Inputs("tensor", (A,))) == [0]
    with pytest.raises(DataError, match=r"'b' gets no column.*'y' is not an input"):
        match_inputs(["a", "y"], False, two)
    with pytest.raises(DataError, match=r"'a' gets no column \(did you mean 'aa'"):
        match_inputs(["aa", "b"], False, Inputs("dict", (A, B)))
    with pytest.raises(DataError, match=r"2 inputs .* one tensor"):
        match_inputs(["x"], True, two)
    with pytest.raises(DataError, match="stack=True"):
        match_inputs(["x", "y"], False, Inputs("tensor", (A,)))


@pytest.mark.parametrize(
    ("dims", "wanted", "result"),
    [
        ((784,), (28, 28, 1), (28, 28, 1)),
        ((), (1,), (1,)),
        ((), (None,), (-1,)),
        ((3,), (3,), None),
        ((5,), (None,), None),
        ((None,), (None,), None),
        ((6,), (None, 3), (-1, 3)),
        ((1,), (), ()),
        ((5,), None, None),
    ],
)
def test_rows_are_reshaped_if_the_number_of_values_fits(dims, wanted, result):
    assert reshape_dims("x", dims, "float32", Input("a", wanted, "float32")) == result


def test_a_mismatch_names_the_feature_and_the_input():
    with pytest.raises(DataError, match=r"'x' is \[batch, 783\] float32.*'a' \[batch, 28, 28\] float32"):
        reshape_dims("x", (783,), "float32", Input("a", (28, 28), "float32"))
    with pytest.raises(DataError, match=r"'x' is \[batch\] string.*float32"):
        reshape_dims("x", (), "string", Input("a", (), "float32"))
    with pytest.raises(DataError, match=r"\[batch, \?\]"):
        reshape_dims("x", (None,), "float32", Input("a", (4,), "float32"))


def test_output_types_and_names():
    assert spark_type([Output("o", (), "float32")]) == "float"
    assert spark_type([Output("o", (1,), "bfloat16")]) == "float"
    assert spark_type([Output("o", (10,), "float64")]) == "array<double>"
    assert spark_type([Output("o", (None, 2), "string")]) == "array<array<string>>"
    assert spark_type([Output("a", (1,), "uint8"), Output("b`", (2,), "bool")]) == (
        "struct<`a`: smallint, `b```: array<boolean>>"
    )
    with pytest.raises(DataError, match="complex64"):
        spark_type([Output("o", (), "complex64")])
    assert output_names(2, ["x", "y"], None) == ["x", "y"]
    assert output_names(2, None, ["x", "y"]) == ["x", "y"]
    assert output_names(2, None, ["x", "x"]) == ["output_0", "output_1"]


def test_a_type_returns_from_json():
    from pyspark.sql import types as T

    parts = T.StructType([T.StructField("a", T.DecimalType(5, 2), False), T.StructField("b", T.ByteType())])
    for kind in (T.FloatType(), T.ArrayType(T.ArrayType(T.StringType(), False)), parts):
        assert type_from_json(kind.json()) == kind


def test_arrow_to_rows():
    import pyarrow as pa

    assert rows_from_arrow(pa.array([1.5, 2.0]), ["x"]).data.tolist() == [1.5, 2.0]
    assert rows_from_arrow(pa.array([True, False]), ["x"]).data.dtype == bool
    assert rows_from_arrow(pa.array([[1, 2], [3, 4], [5, 6]]).slice(1), ["x"]).data.tolist() == [[3, 4], [5, 6]]
    texts = rows_from_arrow(pa.array(["ä", "", "bc"]).slice(1), ["x"])
    assert texts.data.tolist() == [b"", b"bc"]
    assert texts.dtype == "string"
    nested = rows_from_arrow(pa.array([[["a"], ["b"]], [["c"], ["d"]]]), ["x"])
    assert nested.data.tolist() == [[[b"a"], [b"b"]], [[b"c"], [b"d"]]]
    ragged = rows_from_arrow(pa.array([[1, 2], [], [3]]), ["x"])
    assert ragged.dims == (None,)
    part = ragged.slice(1, 3)
    assert (part.data.tolist(), part.lengths[0].tolist()) == ([3], [0, 1])
    deep = rows_from_arrow(pa.array([[[1, 2], [3]], [[4]]]), ["x"]).slice(1, 2)
    assert (deep.data.tolist(), [level.tolist() for level in deep.lengths]) == ([4], [[1], [1]])


def test_nulls_name_their_column():
    import pyarrow as pa

    with pytest.raises(DataError, match=r"column 'x' has 2 nulls in a batch of 3 rows.*hold nulls\. Pass fill_value"):
        rows_from_arrow(pa.array([1, None, None]), ["x"], has_fill_value=True)
    with pytest.raises(DataError, match=r"^The weight column 'w' has 1 null in .*hold nulls\. Fill or drop"):
        rows_from_arrow(pa.array([1, None]), ["w"], subject="The weight column 'w'")
    with pytest.raises(DataError, match="column 'y' has 1 null in"):
        rows_from_arrow(pa.array([[1.0, 2.0], [1.0, None]]), ["x", "y"])
    with pytest.raises(DataError, match=r"column 'x' \(and y too\) has 1 null in"):
        rows_from_arrow(pa.array([[None, 2.0], [1.0, None]]), ["x", "y"])


def test_nulls_in_arrays_are_counted_and_advice_is_what_helps():
    import pyarrow as pa

    in_spark = r"Fill or filter them in Spark \(coalesce, transform, filter\)\.$"
    inner, outer = pa.array([[1.0, None], [2.0, 3.0]]), pa.array([[1.0, None], None, [None]])
    with pytest.raises(DataError, match=r"'x': 1 value in arrays is null in a batch of 2 rows.* Pass fill_value\."):
        rows_from_arrow(inner, ["x"], has_fill_value=True)
    with pytest.raises(DataError, match=rf"column 'x': 1 value in arrays is null .*hold nulls\. {in_spark}"):
        rows_from_arrow(inner, ["x"])
    # fill_value does not replace null arrays, nor nulls in nested arrays.
    found = "column 'x': 1 of 3 arrays is null and 2 values in arrays are null in a batch of 3 rows"
    with pytest.raises(DataError, match=rf"{found}, .*hold nulls\. {in_spark}"):
        rows_from_arrow(outer, ["x"], has_fill_value=True)
    with pytest.raises(DataError, match=rf"column 'x': 1 value in arrays is null .*hold nulls\. {in_spark}"):
        rows_from_arrow(pa.array([[[1.0, None]]]), ["x"], has_fill_value=True)


def test_a_vector_and_a_struct_as_arguments():
    import pyarrow as pa

    vector = pa.array([{"type": 1, "size": None, "indices": None, "values": [1.0]}])
    with pytest.raises(DataError, match="vector_to_array"):
        rows_from_arrow(vector, ["v"])
    with pytest.raises(DataError, match=r"struct of \['a'\]"):
        rows_from_arrow(pa.array([{"a": 1}]), ["v"])


def test_stacking():
    whole = stack([Rows("a", np.array([1, 2])), Rows("b", np.array([[3.0, 4.0], [5.0, 6.0]]))])
    assert whole.data.dtype == np.float32
    assert whole.data.tolist() == [[1, 3, 4], [2, 5, 6]]
    with pytest.raises(DataError, match="'c'"):
        stack([Rows("c", np.array([1]), [np.array([1])])])


def test_rows_to_arrow():
    import pyarrow as pa

    def arrow(data, kind, *more):
        return rows_to_arrow([Rows("o", np.asarray(each)) for each in (data, *more)], kind)

    assert arrow([[1.0], [2.0]], pa.float32()).to_pylist() == [1.0, 2.0]
    assert arrow([[1.0], [2.0]], pa.list_(pa.float32())).to_pylist() == [[1.0], [2.0]]
    assert arrow([[1, 2]], pa.list_(pa.int64()), [[3, 4]]).to_pylist() == [[1, 2], [3, 4]]
    assert arrow(np.zeros((2, 2, 1)), pa.list_(pa.list_(pa.float64()))).to_pylist() == [[[0.0], [0.0]]] * 2
    assert arrow(np.array([b"a", "ä".encode()], object), pa.string()).to_pylist() == ["a", "ä"]
    ragged = Rows("o", np.array([1.0, 2.0, 3.0]), [np.array([2, 0, 1])])
    assert rows_to_arrow([ragged], pa.list_(pa.float64())).to_pylist() == [[1.0, 2.0], [], [3.0]]
    with pytest.raises(DataError, match="output_type"):
        arrow([[1.0, 2.0]], pa.float32())


def archive(version):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": version, "date_saved": "now"}))
        file.writestr("config.json", "{}")
    return data.getvalue()


def test_model_files(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    path = tmp_path / "m.keras"
    path.write_bytes(archive("3.1.0"))
    spec, data = models.pack(path, None, True)
    assert (spec.kind, spec.library, data) == ("keras", "keras", path.read_bytes())
    path.write_bytes(archive("2.15.0"))
    assert models.pack(str(path), None, True)[0].library == "tf_keras"
    assert models.pack(f"file://{path}", None, True)[0].kind == "keras"
    again, _ = models.pack(path, None, True)
    assert again.key == models.pack(path, None, True)[0].key
    assert again.key != models.pack(path, {"f": len}, True)[0].key
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"contains no saved_model\.pb, but nothing"):
        models.pack(folder, None, True)
    (folder / "saved_model.pb").write_bytes(b"x")
    (folder / "assets").mkdir()
    (folder / "assets" / "words").write_bytes(b"y")
    spec, data = models.pack(folder, None, True)
    assert spec.kind == "saved_model"
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["saved_model.pb", "assets/words"]
    spec, data = models.pack("gs://bucket/model.keras", None, True)
    assert (spec.kind, spec.url, data) == ("url", "gs://bucket/model.keras", b"")
    assert spec.library == ""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert models.pack("gs://bucket/model.keras", None, True)[0].library == "tf_keras"


def test_arguments_that_are_not_models(tmp_path):
    with pytest.raises(ConfigurationError, match=r"There is no model at 'nowhere.keras'"):
        models.pack("nowhere.keras", None, True)
    weights = tmp_path / "model.weights.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ConfigurationError, match="weights alone"):
        models.pack(weights, None, True)
    with pytest.raises(ConfigurationError, match="model is an int"):
        models.pack(3, None, True)
    layer = type("Dense", (), {"__module__": "keras.layers"})()
    with pytest.raises(ConfigurationError, match="model is a Dense"):
        models.pack(layer, None, True)


def test_only_spark_dataframes_are_predicted():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=r"got a DataFrame of pandas.* as df.*spark\.createDataFrame\(df\)"):
        predict(pandas.DataFrame({"x": [1.0]}), None, "x")
    on_spark = type("DataFrame", (), {"__module__": "pyspark.pandas.frame"})()
    with pytest.raises(DataError, match=r"df\.to_spark\(\)"):
        predict(on_spark, None, "x")
    with pytest.raises(DataError, match="got a list of builtins as df"):
        predict([[1.0]], None, "x")
