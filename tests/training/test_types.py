"""The conversion of Spark columns to tensors, for each row of the table in docs/data.md, and what is rejected."""

import datetime
import decimal
import sys

import numpy as np
import pytest
from pyspark import cloudpickle

from spark_tensorflow_distributor import DataError, MirroredStrategyRunner, TrainingFailedError

# The workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

UTC = datetime.timezone.utc
ROWS = 11
DAY = datetime.date(2024, 2, 29)
MOMENT = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = datetime.timedelta(microseconds=1)


def table():
    """Return (Spark's type, the value in row i, the value in TensorFlow, its type, the shape of a row) by name."""
    from pyspark.ml.linalg import Vectors

    def sparse(i):
        return Vectors.sparse(4, [i % 4], [i / 2]) if i % 2 else Vectors.dense([i, 0, 1, 2])

    def micros(moment):
        return (moment - EPOCH) // MICROSECOND

    def photo(i):
        return bytes([i, 0, 255]) * (300 * i)

    return {
        "byte": ("tinyint", lambda i: i - 128, lambda i: i - 128, "int8", ()),
        "short": ("smallint", lambda i: 3000 * i, lambda i: 3000 * i, "int16", ()),
        "int": ("int", lambda i: i - 2**31, lambda i: i - 2**31, "int32", ()),
        "long": ("bigint", lambda i: 2**53 + i, lambda i: 2**53 + i, "int64", ()),
        "float": ("float", lambda i: i / 3, lambda i: np.float32(i / 3), "float32", ()),
        "double": ("double", lambda i: i / 3, lambda i: i / 3, "float64", ()),
        "boolean": ("boolean", lambda i: i % 3 == 0, lambda i: i % 3 == 0, "bool", ()),
        "string": ("string", lambda i: "äx" * i, lambda i: ("äx" * i).encode(), "string", ()),
        "code": ("string", lambda i: f"{i:03}", lambda i: f"{i:03}".encode(), "string", ()),
        "binary": ("binary", photo, photo, "string", ()),
        "decimal": ("decimal(10,2)", lambda i: decimal.Decimal(i) / 4, lambda i: i / 4, "float64", ()),
        "date": ("date", lambda i: DAY + datetime.timedelta(i), lambda i: 19782 + i, "int32", ()),
        "timestamp": (
            "timestamp",
            lambda i: MOMENT + datetime.timedelta(hours=i),
            lambda i: micros(MOMENT + datetime.timedelta(hours=i)),
            "int64",
            (),
        ),
        "timestamp_ntz": (
            "timestamp_ntz",
            lambda i: MOMENT.replace(tzinfo=None) + datetime.timedelta(hours=i),
            lambda i: micros(MOMENT + datetime.timedelta(hours=i)),
            "int64",
            (),
        ),
        "interval": (
            "interval day to second",
            lambda i: datetime.timedelta(seconds=i),
            lambda i: i * 10**6,
            "int64",
            (),
        ),
        "array": ("array<float>", lambda i: [float(i), i / 2, -1.0], lambda i: [i, i / 2, -1], "float32", (3,)),
        "flags": ("array<boolean>", lambda i: [i > 3, True], lambda i: [i > 3, True], "bool", (2,)),
        "words": ("array<string>", lambda i: ["a" * i, "b"], lambda i: [b"a" * i, b"b"], "string", (2,)),
        "prices": (
            "array<decimal(6,1)>",
            lambda i: [decimal.Decimal(i)] * 2,
            lambda i: [float(i)] * 2,
            "float64",
            (2,),
        ),
        "matrix": (
            "array<array<int>>",
            lambda i: [[i, 1, 2], [3, 4, -i]],
            lambda i: [[i, 1, 2], [3, 4, -i]],
            "int32",
            (2, 3),
        ),
        "vector": (None, sparse, lambda i: sparse(i).toArray(), "float32", (4,)),
        "struct.inner": (None, None, lambda i: i * 10, "int32", ()),
        "struct.deep.name": (None, None, lambda i: f"n{i}".encode(), "string", ()),
        "odd.name": ("int", lambda i: i, lambda i: i, "int32", ()),
    }  # fmt: skip


def frame_of(spark):
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import types as T

    fields = [T.StructField("id", T.IntegerType())]
    rows = [[i] for i in range(ROWS)]
    for name, (kind, value, *_) in table().items():
        if value is None:
            continue
        parsed = VectorUDT() if kind is None else T._parse_datatype_string(kind)
        fields.append(T.StructField(name, parsed))
        for i in range(ROWS):
            rows[i].append(value(i))
    deep = T.StructType([T.StructField("name", T.StringType())])
    fields.append(
        T.StructField("struct", T.StructType([T.StructField("inner", T.IntegerType()), T.StructField("deep", deep)]))
    )
    for i in range(ROWS):
        rows[i].append((i * 10, (f"n{i}",)))
    return spark.createDataFrame([tuple(row) for row in rows], T.StructType(fields)).repartition(3)


def read_all(data, names):
    """Return each column's spec, and its values by id, as every rank reads them."""
    import base64
    import pickle

    from pyspark import BarrierTaskContext

    own = {}
    for name in names:
        dataset = data.to_tf(["id", name], batch_size=4)
        spec = dataset.element_spec[name]
        values = {}
        for batch in dataset:
            for i, value in zip(batch["id"].numpy().tolist(), batch[name].numpy(), strict=True):
                values[i] = value.tolist() if hasattr(value, "tolist") else value
        own[name] = (spec.dtype.name, tuple(spec.shape[1:]), values)
    text = base64.b64encode(pickle.dumps(own)).decode()
    return [pickle.loads(base64.b64decode(each)) for each in BarrierTaskContext.get().allGather(text)]


@pytest.fixture(scope="module")
def read(spark):
    # The values must not depend on the time zone; this one has a half-hour offset and daylight saving time.
    zone = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "Australia/Adelaide")
    try:
        runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, use_custom_strategy=True)
        return runner.run(read_all, data=frame_of(spark), names=list(table()))
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)


@pytest.mark.parametrize("name", list(table()))
def test_table_of_types(read, name):
    _, _, expected, dtype, shape = table()[name]
    values = {}
    for rank in read:
        found_dtype, found_shape, part = rank[name]
        assert (found_dtype, found_shape) == (dtype, shape)
        values.update(part)
    assert sorted(values) == list(range(ROWS))
    for i in range(ROWS):
        if dtype in ("float32", "float64"):
            np.testing.assert_allclose(values[i], expected(i), rtol=1e-6)
        else:
            assert values[i] == expected(i), (i, values[i])


def with_gaps(spark):
    from pyspark.sql import functions as F

    ids = F.col("id")
    some = ids % 4 == 0
    return spark.range(0, 40, 1, 3).select(
        "id",
        F.when(~some, ids.cast("double")).alias("gaps"),
        F.when(~some, ids).alias("whole_gaps"),
        F.when(~some, F.concat(F.lit("t"), ids)).alias("text_gaps"),
        F.when(~some, ids > 20).alias("flag_gaps"),
        F.when(ids < 0, ids).alias("never"),
        F.when(~some, ids.cast("float")).otherwise(F.lit(float("nan"))).alias("nans"),
        F.sequence(F.lit(1), F.lit(1) + ids % 3).cast("array<float>").alias("ragged"),
        F.array_repeat(F.array_repeat(F.lit("w"), (ids % 2).cast("int")), 2).alias("ragged_texts"),
        F.when(~some, F.array(F.lit(1.0))).alias("array_gaps"),
        F.array(F.lit(1.0), F.when(~some, F.lit(2.0))).alias("inner_gaps"),
        F.concat(F.lit("t"), ids).alias("text"),
        F.current_date().alias("day"),
    )


def test_options_for_nulls_and_ragged_arrays(spark):
    def look(data):
        filled = data.to_tf(
            ["id", "gaps", "whole_gaps", "text_gaps", "flag_gaps"],
            batch_size=4,
            fill_value={"gaps": -1.5, "whole_gaps": 2**60 + 1, "text_gaps": "none", "flag_gaps": True},
        )
        found = {"filled": [], "ragged": [], "pad": [], "cut": [], "texts": [], "stacked": []}
        for batch in filled:
            found["filled"] += list(zip(*(batch[name].numpy().tolist() for name in batch), strict=True))
        for batch in data.to_tf(["id", "ragged"], batch_size=4, ragged="ragged"):
            found["ragged"] += list(zip(batch["id"].numpy().tolist(), batch["ragged"].to_list(), strict=True))
        for batch in data.to_tf(["id", "ragged"], batch_size=4, ragged="pad", pad_value=-1):
            assert batch["ragged"].shape[1] == 3
            found["pad"] += list(zip(batch["id"].numpy().tolist(), batch["ragged"].numpy().tolist(), strict=True))
        for batch in data.to_tf(["id", "ragged"], batch_size=4, ragged={"ragged": 2}):
            found["cut"] += list(zip(batch["id"].numpy().tolist(), batch["ragged"].numpy().tolist(), strict=True))
        for batch in data.to_tf(["id", "ragged_texts"], batch_size=4, ragged="pad"):
            found["texts"] += list(
                zip(batch["id"].numpy().tolist(), batch["ragged_texts"].numpy().tolist(), strict=True)
            )
        stacked = data.to_tf(["ragged", "id", "gaps"], "id", batch_size=4, stack=True, ragged="pad", fill_value=0)
        assert stacked.element_spec[0].shape[1] == 5
        assert stacked.element_spec[0].dtype.name == "float32"
        for x, _ in stacked:
            found["stacked"] += x.numpy().tolist()
        return found

    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, use_custom_strategy=True)
    found = runner.run(look, data=with_gaps(spark))
    for i, gaps, whole, text, flag in found["filled"]:
        some = i % 4 == 0
        expected = (-1.5, 2**60 + 1, b"none", True) if some else (float(i), i, f"t{i}".encode(), i > 20)
        assert (gaps, whole, text, flag) == expected
    for i, values in found["ragged"]:
        assert values == [1.0, 2.0, 3.0][: i % 3 + 1]
    for i, values in found["pad"]:
        assert values == ([1.0, 2.0, 3.0][: i % 3 + 1] + [-1.0] * 2)[:3]
    for i, values in found["cut"]:
        assert values == [*[1.0, 2.0][: i % 3 + 1], 0.0][:2]
    for i, values in found["texts"]:
        assert values == [[b"w"] if i % 2 else [b""]] * 2
    for row in found["stacked"]:
        i = int(row[3])
        assert row == [*([1.0, 2.0, 3.0][: i % 3 + 1] + [0.0] * 2)[:3], i, 0.0 if i % 4 == 0 else i]
    assert len(found["filled"]) == len(found["ragged"]) == 20


REFUSED = {
    "unknown": (("gasp",), {}, r"no column 'gasp' \(did you mean 'gaps'"),
    "far_off": (("qqqqqq",), {}, "no column 'qqqqqq'; it has id, gaps"),
    "nulls": (("gaps",), {}, "column 'gaps': 10 of 40 rows are null. Pass fill_value"),
    "all_null": (("never",), {"fill_value": 0}, "column 'never': all 40 rows are null"),
    "nan": (("nans",), {"refuse_nan": True}, "column 'nans': 10 values are NaN"),
    "ragged": (("ragged",), {}, r"column 'ragged': its arrays have different lengths \(1 to 3"),
    "ragged_stack": ((["ragged"],), {"stack": True, "ragged": "ragged"}, "it is ragged array<float>"),
    "array_nulls": (("array_gaps",), {"fill_value": 0}, "10 of 40 arrays are null"),
    "inner_nulls": (("inner_gaps",), {}, "10 values in arrays"),
    "text_label": (("id", "text"), {}, "label column 'text': it is of type string"),
    "date_label": (("id", "day"), {}, "label column 'day': it is of type date"),
    "text_stack": ((["id", "text"],), {"stack": True}, "column 'text': it is string, and stack=True"),
    "text_weight": (("id", "id"), {"weight_column": "text"}, "weight column 'text'"),
    "fill_type": (("gaps",), {"fill_value": "x"}, "fill_value is 'x', but the column is of type double"),
}
MISTAKES = {
    "weight_alone": (("id",), {"weight_column": "id"}, "weight_column='id' requires label_columns"),
    "batch": (("id",), {"batch_size": 1}, "batch_size is 1.*one row per worker: 2"),
    "fraction": (("id",), {"batch_size": 2.5}, "batch_size is 2.5"),
    "choice": (("ragged",), {"ragged": "yes"}, "ragged is 'yes' for the column 'ragged'"),
    "fill_name": (("gaps",), {"fill_value": {"gasp": 0}}, r"'gasp', which is not a requested column \(did you mean"),
    "nothing": (([],), {}, "names no column"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(spark):
    cases = {name: case[:2] for name, case in {**REFUSED, **MISTAKES}.items()}

    def ask(data, empty):
        found = {}
        for name, (args, kwargs) in cases.items():
            try:
                data.to_tf(*args, **{"batch_size": 4, **kwargs})
                found[name] = None
            except Exception as error:
                found[name] = (type(error).__name__, str(error))
        try:
            empty.to_tf("id", batch_size=4)
        except Exception as error:
            found["empty"] = (type(error).__name__, str(error))
        return found

    frame = with_gaps(spark)
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, use_custom_strategy=True)
    return runner.run(ask, data=frame, empty=frame.where("id < 0"))


@pytest.mark.parametrize("name", [*REFUSED, *MISTAKES, "empty"])
def test_to_tf_rejects(refusals, name):
    import re

    kind, message = refusals[name]
    if name == "empty":
        assert (kind, message.split(".")[0]) == ("DataError", "The DataFrame 'empty' has no rows")
        return
    assert kind == ("DataError" if name in REFUSED else "ConfigurationError")
    wanted = {**REFUSED, **MISTAKES}[name][2]
    assert re.search(wanted, message), message


def test_a_rejection_reaches_the_driver_unchanged(spark):
    def train(data):
        data.to_tf("labl", batch_size=4)

    with pytest.raises(DataError, match="did you mean 'label'") as caught:
        MirroredStrategyRunner(num_slots=2, use_gpu=False, max_restarts=3).run(
            train, data=spark.range(4).withColumnRenamed("id", "label")
        )
    assert isinstance(caught.value, TrainingFailedError)
    assert type(caught.value.__cause__) is DataError
    assert set(caught.value.failures) == {0, 1}
