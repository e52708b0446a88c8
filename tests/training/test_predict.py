"""Predictions on the cluster equal the results of ``model.predict`` on the same rows."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from spark_tensorflow_distributor import ClusterError, ConfigurationError, DataError, SerializationError
from spark_tensorflow_distributor.inference import loading
from spark_tensorflow_distributor.inference import predict as module
from spark_tensorflow_distributor.inference.model import ModelSpec
from spark_tensorflow_distributor.inference.predict import predict, predict_udf
from spark_tensorflow_distributor.inference.predictor import Predictor
from spark_tensorflow_distributor.inference.rows import Rows

COLUMNS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def keras():
    """Keras in the test's own process, which plays a driver whose user has a model."""
    import keras

    return keras


@pytest.fixture(scope="module")
def dense(keras):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, activation="relu"), layers.Dense(1)])


@pytest.fixture(scope="module")
def numbers(spark):
    """100 rows in one partition, next to an empty one: id, a (float), b (int), c (double), city."""
    from pyspark.sql import functions as F

    return (
        spark.range(0, 200, 1, 2)
        .where("id < 100")
        .select(
            "id",
            (F.col("id") / 10).cast("float").alias("a"),
            (F.col("id") % 7).cast("int").alias("b"),
            (-F.col("id") / 3).alias("c"),
            F.when(F.col("id") % 3 == 0, "Ulm").otherwise("Köln").alias("city"),
        )
    )


def matrix(rows):
    return np.array([[row[name] for name in COLUMNS] for row in rows], np.float32)


def close(found, wanted):
    np.testing.assert_allclose(np.array(found, np.float64), wanted, rtol=1e-4, atol=1e-5)


def test_stacked_columns(numbers, dense):
    scored = predict(numbers, dense, COLUMNS, stack=True, batch_size=7)
    assert scored.columns == [*numbers.columns, "prediction"]
    assert scored.schema["prediction"].dataType.simpleString() == "float"
    assert scored.rdd.getNumPartitions() == 2
    rows = scored.collect()
    assert [row.id for row in rows] == list(range(100))
    assert {row.city for row in rows} == {"Ulm", "Köln"}
    close([row.prediction for row in rows], dense.predict(matrix(rows), verbose=0)[:, 0])


def test_a_filter_on_the_prediction_does_not_compute_it_twice(numbers, dense):
    scored = predict(numbers, dense, COLUMNS, stack=True).where("prediction > 0")
    assert scored._jdf.queryExecution().executedPlan().toString().count("ArrowEvalPython") == 1
    assert 0 < scored.count() < 100


def test_files(numbers, dense, tmp_path):
    wanted = dense.predict(matrix(numbers.collect()), verbose=0)[:, 0]
    paths = [tmp_path / name for name in ("m.keras", "m.h5", "saved")]
    before = os.listdir(tempfile.gettempdir())
    dense.save(paths[0])
    dense.save(paths[1])
    dense.export(paths[2], verbose=False)
    for path in paths:
        scored = predict(numbers, str(path), COLUMNS, stack=True, output_column="p")
        assert scored.schema["p"].dataType.simpleString() == "float"
        close([row.p for row in scored.collect()], wanted)
        spec = ModelSpec("url", "key", url=str(path))  # as executors load it from storage
        loaded = Predictor(loading.load(spec, bytes))([Rows("x", np.ones((2, 3), np.float32))], True, False)
        close(loaded[0].data, dense.predict(np.ones((2, 3)), verbose=0))
    left = [name for name in os.listdir(tempfile.gettempdir()) if name not in before]
    assert not [name for name in left if name.startswith("spark-tensorflow-")]


def test_a_dict_of_columns_with_text(numbers, keras):
    layers = keras.layers
    city = keras.Input((1,), name="city", dtype="string")
    a = keras.Input((1,), name="a")
    one_hot = layers.StringLookup(vocabulary=["Ulm", "Köln"], output_mode="one_hot")(city)
    joined = layers.Concatenate()([one_hot, a])
    outputs = {"score": layers.Dense(1)(joined), "probabilities": layers.Dense(3, activation="softmax")(joined)}
    model = keras.Model({"city": city, "a": a}, outputs)
    scored = predict(numbers, model, ["a", "city"])
    kind = scored.schema["prediction"].dataType.simpleString()
    assert sorted(kind.removeprefix("struct<").removesuffix(">").split(",")) == [
        "probabilities:array<float>",
        "score:float",
    ]
    rows = scored.collect()
    import tensorflow as tf

    wanted = model({"a": tf.constant([[r.a] for r in rows]), "city": tf.constant([[r.city] for r in rows])})
    close([r.prediction.score for r in rows], wanted["score"][:, 0])
    close([r.prediction.probabilities for r in rows], wanted["probabilities"])
    with pytest.raises(Exception, match=r"'city' gets no column \(did you mean 'city_'"):
        predict(numbers.withColumnRenamed("city", "city_"), model, ["a", "city_"]).collect()


def test_several_inputs_in_order_and_outputs_by_name(numbers, keras):
    layers = keras.layers
    left, right = keras.Input((1,), name="left"), keras.Input((1,), name="right")
    model = keras.Model([left, right], [layers.Dense(1, name="x")(left), layers.Dense(2, name="y")(right)])
    rows = predict(numbers, model, ["a", "c"]).collect()
    x, y = model.predict([matrix(rows)[:, :1], matrix(rows)[:, 2:]], verbose=0)
    close([r.prediction.x for r in rows], x[:, 0])
    close([r.prediction.y for r in rows], y)


def test_images_as_flat_arrays(spark, keras):
    from pyspark.sql import functions as F

    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(10, activation="softmax")]
    )
    pixels = F.transform(F.sequence(F.lit(0), F.lit(63)), lambda i: ((i * 37 + F.col("id")) % 255 / 255).cast("float"))
    df = spark.range(0, 50, 1, 2).select("id", F.struct(pixels.alias("pixels")).alias("image"))
    scored = predict(df, model, "image.pixels", batch_size=16)
    assert scored.schema["prediction"].dataType.simpleString() == "array<float>"
    rows = scored.collect()
    images = np.array([row.image.pixels for row in rows], np.float32).reshape(-1, 8, 8, 1)
    close([row.prediction for row in rows], model.predict(images, verbose=0))
    wrong = df.select(F.slice("image.pixels", 1, 63).alias("pixels"))
    with pytest.raises(Exception, match=r"'pixels' is \[batch, 63\] float32, but the model takes .*\[batch, 8, 8, 1\]"):
        predict(wrong, model, "pixels").collect()


def test_vectors(spark, dense):
    from pyspark.ml.linalg import Vectors

    vectors = [Vectors.dense([1.0, 2.0, 3.0]), Vectors.sparse(3, {1: 5.0})]
    df = spark.createDataFrame([(vector,) for vector in vectors], ["v"]).coalesce(1)
    wanted = dense.predict(np.array([[1, 2, 3], [0, 5, 0]], "float32"), verbose=0)[:, 0]
    close([row.prediction for row in predict(df, dense, "v").collect()], wanted)
    close([row.prediction for row in predict(df, dense, ["v"], stack=True).collect()], wanted)


@pytest.mark.filterwarnings("ignore")
def test_ragged_arrays(spark, keras):
    """A model that looks up words one by one and gets a RaggedTensor."""
    import tensorflow as tf

    @keras.saving.register_keras_serializable("ours")
    class Mean(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.table = self.add_weight(shape=(5,), initializer="random_normal", name="table")

        def call(self, words):
            import tensorflow as tf

            return tf.reduce_sum(tf.gather(tf.convert_to_tensor(self.table), words), axis=1)

    model = Mean()
    model(tf.ragged.constant([[1, 2], [3]]))
    lists = [[1, 2, 3], [4], [], [0, 0]]
    df = spark.createDataFrame([(each,) for each in lists], "words array<int>").coalesce(1)
    rows = predict(df, model, "words").collect()
    table = np.array(model.table)
    close([row.prediction for row in rows], [table[each].sum() if each else 0.0 for each in lists])


def test_nulls(spark, dense):
    df = spark.createDataFrame([(1.0, 2, None), (None, 2, 3.0)], "a float, b int, c double").coalesce(1)
    with pytest.raises(Exception, match=r"column 'a' \(and c too\) has 1 null in a batch of 2 rows"):
        predict(df, dense, COLUMNS, stack=True).collect()
    with pytest.raises(Exception, match="The feature column 'a' has 1 null in a batch of 2 rows"):
        predict(df, dense, ["a"], stack=True).collect()
    rows = predict(df, dense, COLUMNS, stack=True, fill_value={"a": 7, "c": -1.0}).collect()
    close([r.prediction for r in rows], dense.predict(np.array([[1, 2, -1], [7, 2, 3]], "float32"), verbose=0)[:, 0])
    arrays = spark.createDataFrame([([1.0, None, 3.0],)], "v array<float>").coalesce(1)
    found = predict(arrays, dense, "v", fill_value=0).first().prediction
    close([found], dense.predict(np.array([[1, 0, 3]], "float32"), verbose=0)[0])


def test_custom_classes_and_one_load_per_worker(numbers, keras, tmp_path):
    """The classes exist only in this function. Each load writes the process's id to a file."""

    def twice(x):
        return x * 2

    class Scale(keras.layers.Layer):
        def __init__(self, log, **kwargs):
            super().__init__(**kwargs)
            self.log = log
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")

        def call(self, x):
            return x * 3

        def get_config(self):
            return {**super().get_config(), "log": self.log}

    log = str(tmp_path / "log")
    model = keras.Sequential([keras.Input((3,)), Scale(log), keras.layers.Dense(2, activation=twice)])
    for _ in range(4):  # more tasks than workers, so that some workers are reused
        rows = predict(numbers, model, COLUMNS, stack=True).collect()
        close([row.prediction for row in rows], model.predict(matrix(rows), verbose=0))
    loads = [pid for pid in Path(log).read_text().split() if pid != str(os.getpid())]
    assert loads
    assert len(loads) == len(set(loads))
    path = str(tmp_path / "m.keras")
    model.save(path)
    with pytest.raises(SerializationError, match="custom_objects"):
        predict(numbers, path, COLUMNS, stack=True)
    custom = {"Scale": Scale, "twice": twice}
    close(
        [r.prediction for r in predict(numbers, path, COLUMNS, stack=True, custom_objects=custom).collect()][:1],
        model.predict(matrix(numbers.take(1)), verbose=0),
    )


def test_sql(spark, numbers, dense, tmp_path):
    path = str(tmp_path / "m.keras")
    dense.save(path)
    wanted = dense.predict(matrix(numbers.collect()), verbose=0)[:, 0]
    score = predict_udf(path, stack=True, output_type="double")
    spark.udf.register("score", score)
    numbers.createOrReplaceTempView("numbers")
    found = spark.sql("SELECT score(a, b, c) AS p, id FROM numbers ORDER BY id").collect()
    close([row.p for row in found], wanted)
    assert isinstance(found[0].p, float)
    close([row.p for row in numbers.select(score("a", "b", "c").alias("p")).collect()], wanted)


def test_without_arrow_functions(spark, numbers, keras, dense, monkeypatch):
    """PySpark before 4.1 has only pandas functions."""
    from pyspark.sql import functions as F

    monkeypatch.delattr(F, "arrow_udf", raising=False)
    rows = predict(numbers, dense, COLUMNS, stack=True).collect()
    close([row.prediction for row in rows], dense.predict(matrix(rows), verbose=0)[:, 0])
    x = keras.Input((3,), name="x")
    two = keras.Model(x, {"p": keras.layers.Dense(1)(x), "q": keras.layers.Dense(2)(x)})
    rows = predict(numbers.withColumn("x", F.array(*COLUMNS)), two, "x").collect()
    close([row.prediction.q for row in rows], two.predict(matrix(rows), verbose=0)["q"])


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built:UserWarning")
def test_a_model_that_does_not_declare_its_inputs(numbers, keras):
    class Sum(keras.Model):
        def call(self, columns):
            return {"sum": columns["a"] + columns["c"], "text": columns["city"]}

    model = Sum()
    scored = predict(numbers, model, ["a", "c", "city"])
    assert scored.schema["prediction"].dataType.simpleString() == "struct<sum:float,text:string>"


def test_tf_keras(numbers, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers

    class Plus(layers.Layer):
        def call(self, x):
            return x + 1

    model = tf_keras.Sequential([layers.Input((3,)), Plus(), layers.Dense(1)])
    rows = predict(numbers, model, COLUMNS, stack=True).collect()
    close([row.prediction for row in rows], model.predict(matrix(rows), verbose=0)[:, 0])
    path = str(tmp_path / "saved")
    model.save(path)
    rows = predict(numbers, path, COLUMNS, stack=True).collect()
    close([row.prediction for row in rows], model.predict(matrix(rows), verbose=0)[:, 0])


def test_invalid_calls(numbers, dense):
    with pytest.raises(DataError, match="no column 'd'"):
        predict(numbers, dense, ["a", "d"])
    with pytest.raises(DataError, match="column 'city' is of type string"):
        predict(numbers, dense, ["a", "city"], stack=True)
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        predict(numbers, dense, COLUMNS, batch_size=0)
    with pytest.raises(ConfigurationError, match="fill_value names 'd'"):
        predict(numbers, dense, COLUMNS, fill_value={"d": 1})
    with pytest.raises(ConfigurationError, match="output_type is 'flot'"):
        predict(numbers, dense, COLUMNS, stack=True, output_type="flot")
    with pytest.raises(Exception, match=r"\[batch, 2\] float32, but the model takes .*\[batch, 3\] float32"):
        predict(numbers, dense, ["a", "b"], stack=True).collect()


def test_executors_without_tensorflow(numbers, dense, tmp_path, monkeypatch):
    path = str(tmp_path / "m.keras")
    dense.save(path)
    task = module.shipped

    def hidden(*args):
        body = task(*args)

        def run(batches):
            before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "tensorflow"}
            sys.modules["tensorflow"] = None
            try:
                yield from body(batches)
            finally:
                sys.modules.update(before)
                sys.modules["tensorflow"] = before.get("tensorflow") or sys.modules.pop("tensorflow")

        return run

    monkeypatch.setattr(module, "shipped", hidden)
    with pytest.raises(ClusterError, match=r"TensorFlow cannot be imported .*spark\.pyspark\.python"):
        predict(numbers, path, COLUMNS, stack=True)
