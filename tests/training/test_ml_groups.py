"""One model per group: each has the numbers of a newly built model; failures by key, and predictions."""

import numpy as np
import pytest

from spark_tensorflow_distributor import ConfigurationError, DataError, TrainingFailedError
from spark_tensorflow_distributor.inference.rows import Rows
from spark_tensorflow_distributor.ml.groups.fit import fit_groups
from spark_tensorflow_distributor.ml.groups.models import load_groups
from spark_tensorflow_distributor.ml.groups.spec import GroupProgram, GroupTask

COLUMNS = ["a", "b"]


def build(units=4, dropout=0.0):
    import keras

    layers = [keras.Input((2,)), keras.layers.Dense(units, activation="relu")]
    layers += [keras.layers.BatchNormalization()] if dropout else []
    layers += [keras.layers.Dropout(dropout)] if dropout else []
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse", metrics=["mae"])
    return model


def build_noisy():
    import keras
    import tensorflow as tf

    class Noise(keras.layers.Layer):
        def call(self, inputs, training=False):
            return inputs + tf.random.normal(tf.shape(inputs)) if training else inputs

    model = keras.Sequential([keras.Input((2,)), Noise(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def build_global_seed():
    import keras

    class Noise(keras.layers.Layer):
        def call(self, inputs, training=False):
            return inputs + keras.random.normal((2,)) if training else inputs

    model = keras.Sequential([keras.Input((2,)), Noise(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def rows_of(seed, count):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 2)).astype(np.float32)
    labels = (features @ [1.0, -2.0] + seed).astype(np.float32)
    return [Rows("a", features[:, 0]), Rows("b", features[:, 1])], Rows("y", labels)


def trained_by(trainer, seed, count=40, validation=None):
    from spark_tensorflow_distributor.ml.groups.training import GroupData

    features, labels = rows_of(seed, count)
    return trainer.train(GroupData(features, labels, None, validation))


def trainer_of(model, params=None, callbacks=None, **task):
    from spark_tensorflow_distributor.ml.groups.training import GroupTrainer

    task = {
        "num_keys": 1,
        "features": ("a", "b"),
        "is_single": False,
        "label": "y",
        "epochs": 3,
        "batch_size": 16,
        **task,
    }
    return GroupTrainer(GroupTask(**task), lambda: GroupProgram(model, params or {}, callbacks))


@pytest.mark.parametrize(
    "model",
    [build, lambda: build(4, 0.5), build_noisy, build_global_seed],
    ids=["dense", "dropout", "stateful", "global seed"],
)
def test_a_reused_model_gives_the_numbers_of_a_new_one(model):
    reused = trainer_of(model)
    found = [trained_by(reused, seed, count) for seed, count in ((1, 40), (2, 5), (3, 1), (2, 5))]
    for each, (seed, count) in zip(found, ((1, 40), (2, 5), (3, 1), (2, 5)), strict=True):
        new = trained_by(trainer_of(model), seed, count)
        assert each.history == new.history
        for weight, expected in zip(each.weights, new.weights, strict=True):
            np.testing.assert_array_equal(weight, expected)


def test_the_numbers_are_those_of_fit():
    import keras

    trainer = trainer_of(build, shuffle=False, has_validation=True)
    trained_by(trainer, 1)
    validation = np.arange(40) >= 30
    found = trained_by(trainer, 2, validation=validation)
    keras.utils.set_random_seed(0)
    model = build()
    features, labels = rows_of(2, 40)
    x, y = np.stack([rows.data for rows in features], 1), labels.data
    history = model.fit(
        x[:30], y[:30], batch_size=16, epochs=3, shuffle=False, verbose=0, validation_data=(x[30:], y[30:])
    ).history
    for weight, expected in zip(found.weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)
    for name, values in history.items():
        np.testing.assert_allclose([logs[name] for logs in found.history], values, rtol=1e-4)


def test_callbacks_stop_one_group_and_not_the_next():
    import keras

    class StopAtOnce(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate.assign(0.0)
            self.model.stop_training = True

    trainer = trainer_of(build, callbacks=lambda: [StopAtOnce()])
    found = [trained_by(trainer, seed) for seed in (1, 1)]
    assert [len(each.history) for each in found] == [1, 1]
    assert found[0].history == found[1].history


def test_a_callback_of_batches_fails_the_group():
    import keras

    class EachBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise AssertionError

    with pytest.raises(ConfigurationError, match="EachBatch has on_train_batch_end"):
        trained_by(trainer_of(build, callbacks=lambda: [EachBatch()]), 1)


def test_averaged_weights_are_there_when_training_ends():
    import keras

    found = []

    def averaging():
        model = build()
        model.compile(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5), "mse")
        return model

    at_end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: found.extend(at_end.model.get_weights()))
    trained = trained_by(trainer_of(averaging, callbacks=lambda: [at_end]), 1)
    for weight, expected in zip(found, trained.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    without = trained_by(trainer_of(averaging), 1)
    np.testing.assert_array_equal(without.weights[0], trained.weights[0])


def test_a_label_of_another_width_fails_the_group():
    from spark_tensorflow_distributor.ml.groups.training import GroupData

    features, _ = rows_of(1, 8)
    with pytest.raises(DataError, match="'y' has 3 numbers per row, but the model's output has 1"):
        trainer_of(build).train(GroupData(features, Rows("y", np.ones((8, 3), np.float32))))


def test_text_for_an_input_of_numbers_fails_the_group():
    from spark_tensorflow_distributor.ml.groups.training import GroupData

    (a, _), labels = rows_of(1, 8)
    text = Rows("b", np.array(["x"] * 8, object))
    with pytest.raises(DataError, match=r"'b' is of type string.*StringIndexer"):
        trainer_of(build).train(GroupData([a, text], labels))


def test_a_model_depends_on_the_shape_of_its_own_features_alone():
    import keras

    from spark_tensorflow_distributor.ml.groups.training import GroupData

    def wide(num_features):
        if num_features == 1:
            raise ValueError("too narrow")
        model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    trainer = trainer_of(wide, features=("a",), is_single=True)
    shapes = []
    for width in (2, 1, 3, 1, 2):
        data = GroupData([Rows("a", np.ones((4, width), np.float32))], Rows("y", np.ones(4, np.float32)))
        try:
            shapes.append(trainer.train(data).weights[0].shape[0])
        except ValueError as error:
            depth, place = 0, error.__traceback__
            while place is not None:
                depth, place = depth + 1, place.tb_next
            shapes.append(depth < 8)
    assert shapes == [2, True, 3, True, 2]


def predicted(key_rows, **changes):
    """Return what ``run_function`` yields for one batch of rows ``(key, weights, feature)``."""
    import pickle

    import pyarrow as pa

    from spark_tensorflow_distributor.ml.groups import prediction, worker
    from spark_tensorflow_distributor.ml.groups.weights import pack_weights

    trainer = trainer_of(build)
    weights = pack_weights(trained_by(trainer, 1).weights)
    task = {
        "group_columns": ("store",), "features": ("a", "b"), "is_single": False, "batch_size": 2,
        "gpu_resource_name": "", "refuses_unknown": False, "output_type": '"float"', "integers": ("", ""), **changes,
    }  # fmt: skip
    keys, models, features = zip(*key_rows, strict=True)
    feature = pa.array(features, pa.float32())
    arrays = (
        pa.array(keys, pa.string()), pa.array([True] * len(keys)),
        pa.array([weights if each else None for each in models], pa.binary()), feature, feature,
    )  # fmt: skip
    packed = pickle.dumps(prediction.GroupPredictTask(**task))
    template = pickle.dumps(worker._template(trainer))
    return next(prediction.run_function(packed, template, iter([arrays]))).to_pylist()


ROWS_OF_ONE = [("1", True, None), *(("1", False, number / 4) for number in range(5)), ("2", False, 1.0)]


def test_the_size_of_batches_is_that_of_the_task():
    from spark_tensorflow_distributor.inference.predictor import Predictor

    sizes = []
    original = Predictor.__call__

    def counted(self, features, *args):
        sizes.append(len(features[0].data))
        return original(self, features, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "__call__", counted)
        one, other = predicted(ROWS_OF_ONE, batch_size=2), predicted(ROWS_OF_ONE, batch_size=5)
    assert sizes == [2, 2, 1, 5]
    assert one[0] is one[-1] is None
    np.testing.assert_allclose(one[1:-1], other[1:-1], rtol=1e-5)


def test_two_models_of_a_key_are_refused():
    with pytest.raises(DataError, match="two models for the group store=1"):
        predicted([("1", True, None), ("1", True, None), ("1", False, 1.0)])


@pytest.fixture(scope="module", autouse=True)
def keras():
    """Keras in the test's own process, imported before a test's environment is compared."""
    import keras

    return keras


@pytest.fixture(scope="module")
def df(spark):
    """Stores 0 to 7 with 12 rows each; store 6 has NaN in its labels, store 7 a null among its features."""
    from pyspark.sql import functions as F

    store = (F.col("id") % 8).cast("int")
    rows = spark.range(0, 96, 1, 4).select(
        store.alias("store"),
        F.when((F.col("id") == 7), None).otherwise(F.col("id") / 96).alias("a"),
        F.cos("id").alias("b"),
        F.col("id"),
    )
    label = F.when(F.col("store") == 6, F.lit(float("nan"))).otherwise(F.col("a") * F.col("store"))
    return rows.withColumn("y", label)


@pytest.fixture(scope="module")
def groups(df):
    found = fit_groups(
        df, build, group_columns="store", feature_columns=COLUMNS, label_column="y", epochs=2, batch_size=8, num_tasks=3
    )
    yield found
    found.unpersist()


def test_failures_are_a_column(groups):
    assert (groups.num_groups, groups.num_failed) == (8, 2)
    failures = {row["store"]: row for row in groups.failures.collect()}
    assert "loss is nan after epoch 1" in failures[6]["error"]
    assert "'y' contains 12 values that are NaN" in failures[6]["error"]
    assert "1 null" in failures[7]["error"]
    assert failures[7]["num_rows"] == 12
    good = groups.models.where("store = 3").first()
    assert good["error"] is None
    assert set(good["logs"]) == {"loss", "mae"}
    assert groups.history.where("store = 3").count() == 2


def test_predictions_are_those_of_each_groups_model(df, groups):
    rows = groups.predict(
        df.where("store < 7 and a is not null").unionByName(
            df.where("id = 3").selectExpr("99 AS store", "a", "b", "id", "y")
        )
    ).collect()
    assert len(rows) == 12 * 7 + 1
    assert {row["store"] for row in rows if row["prediction"] is None} == {6, 99}
    for store in (0, 5):
        own = [row for row in rows if row["store"] == store]
        x = np.array([[row["a"], row["b"]] for row in own], np.float32)
        expected = groups.keras_model(store).predict(x, verbose=0).ravel()
        np.testing.assert_allclose([row["prediction"] for row in own], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match=r"no model for the group store=6: its training failed: .*\.$"):
        groups.keras_model(6)
    with pytest.raises(DataError, match=r"no model for the group store=99: it was not .* models lists all groups\.$"):
        groups.keras_model(99)


def test_rows_without_a_model_are_skipped_or_an_error(df, groups):
    some = df.where("store IN (5, 6)")
    assert {row["store"] for row in groups.predict(some, handle_invalid="skip").collect()} == {5}
    with pytest.raises(Exception, match="no model for the group store=6"):
        groups.predict(some, handle_invalid="error").collect()


def test_partitions_do_not_matter(df, groups):
    again = fit_groups(
        df.repartition(7, "id").where("store IN (2, 4)"), build, group_columns="store", feature_columns=COLUMNS,
        label_column="y", epochs=2, batch_size=8, num_tasks=1,
    )  # fmt: skip
    expected = {row["store"]: row["model"] for row in groups.models.collect()}
    assert {row["store"]: row["model"] for row in again.models.collect()} == {
        store: expected[store] for store in (2, 4)
    }
    again.unpersist()


@pytest.fixture(params=["arrow", "pandas"])
def transport(request, monkeypatch):
    """Functions based on Arrow, and functions based on pandas as before PySpark 4.1."""
    if request.param == "pandas":
        monkeypatch.delattr("pyspark.sql.functions.arrow_udf", raising=False)


def test_keys_of_another_type_match_the_same_value(df, groups, transport):
    row = df.where("store = 1").orderBy("id").limit(1)
    wanted = groups.predict(row).first()["prediction"]
    kinds = {"bigint": ["1", "4294967297", None], "string": ["1", "x"], "double": ["1.0", "1.5"]}
    for kind, keys in kinds.items():
        values = ", ".join("NULL" if key is None else f"'{key}'" for key in keys)
        rows = row.selectExpr("a", "b", f"explode(array({values})) AS text")
        found = groups.predict(rows.selectExpr("*", f"CAST(text AS {kind}) AS store")).collect()
        predictions = {each["text"]: each["prediction"] for each in found}
        assert predictions == {key: wanted if key == keys[0] else None for key in keys}
    with pytest.raises(Exception, match="a value of store that the type of the models' key cannot hold"):
        groups.predict(row.selectExpr("a", "b", "'x' AS store"), handle_invalid="error").collect()


def test_columns_of_other_names(df, groups):
    some = df.where("store IN (1, 2)")
    renamed = some.withColumnsRenamed({"store": "shop", "a": "c", "b": "d"})
    found = groups.predict(renamed, feature_columns=["c", "d"], group_columns="shop")
    expected = {row["id"]: row["prediction"] for row in groups.predict(some).collect()}
    assert {row["id"]: row["prediction"] for row in found.collect()} == expected
    with pytest.raises(ConfigurationError, match="groupCol names a, b, but the models' key consists of 1 columns"):
        groups.predict(df, group_columns=["a", "b"])


@pytest.fixture(scope="module")
def large_keys(spark):
    """Rows with keys that float64 cannot distinguish, and a feature of whole numbers."""
    rows = [(key, number, float(number * factor)) for key, factor in LARGE.items() for number in range(8)]
    return spark.createDataFrame(rows, "key bigint, n int, y double")


LARGE = {1 << 53: 1, (1 << 53) + 1: -1, None: 5}


@pytest.fixture(scope="module")
def of_large_keys(large_keys):
    found = fit_groups(
        large_keys, one_input, group_columns="key", feature_columns=["n"], label_column="y", epochs=3, num_tasks=1
    )
    yield found
    found.unpersist()


def one_input():
    import keras

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def test_large_whole_numbers_are_exact(large_keys, of_large_keys, transport):
    found = of_large_keys.predict(large_keys.unionByName(large_keys.selectExpr("7L AS key", "n", "y"))).collect()
    assert len(found) == 48
    for key in LARGE:
        rows = [row for row in found if row["key"] == key]
        numbers = np.array([[row["n"]] for row in rows], np.float32)
        expected = of_large_keys.keras_model(key).predict(numbers, verbose=0).ravel()
        np.testing.assert_allclose([row["prediction"] for row in rows], expected, rtol=1e-5)
        assert len(rows) == 8
    assert {row["prediction"] for row in found if row["key"] == 7} == {None}


def test_arrays_of_different_lengths_fail_the_fit(large_keys):
    def of_width(num_features):
        import keras

        model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    arrays = large_keys.selectExpr("key", "array_repeat(n, IF(key IS NULL, 2, 3)) AS x", "y")
    with pytest.raises(DataError, match="differ in length from group to group"):
        fit_groups(arrays, of_width, group_columns="key", feature_columns="x", label_column="y", num_tasks=2)


def test_save_and_load(df, groups, spark, tmp_path):
    groups.save(f"{tmp_path}/saved")
    loaded = load_groups(spark, f"{tmp_path}/saved")
    some = df.where("store = 1")
    assert sorted(loaded.predict(some).collect()) == sorted(groups.predict(some).collect())
    assert loaded.num_failed == 2


def test_what_fails_for_all_groups_fails_the_fit(df):
    def broken():
        raise KeyError("no such layer")

    with pytest.raises(TrainingFailedError, match=r"all 8 groups.*no such layer"):
        fit_groups(df, broken, group_columns="store", feature_columns=COLUMNS, label_column="y", num_tasks=2)


def test_wrong_columns_fail_before_the_job(df):
    with pytest.raises(DataError, match=r"no column 'shop'.* Correct groupCol\."):
        fit_groups(df, build, group_columns="shop", feature_columns=COLUMNS, label_column="y")
    with pytest.raises(DataError, match="groupOrderCol names the column 'day'"):
        fit_groups(df, build, group_columns="store", feature_columns=COLUMNS, label_column="y", order_columns=["day"])
    with pytest.raises(ConfigurationError, match="epochs is 0"):
        fit_groups(df, build, group_columns="store", feature_columns=COLUMNS, label_column="y", epochs=0)


@pytest.fixture(scope="module")
def regions(df):
    """Regions and stores, with classes 0 and 1; store 9 has a label that is not a class."""
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import functions as F

    label = F.when(F.col("store") == 5, 7).otherwise((F.col("a") > 0.5).cast("int"))
    rows = df.where("store < 6").withColumn("region", F.col("store") % 2).withColumn("label", label)
    return VectorAssembler(inputCols=COLUMNS, outputCol="features").transform(rows)


def two_classes(num_features):
    import keras

    model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy")
    return model


def test_a_classifier_of_groups_in_a_pipeline(regions, tmp_path):
    from pyspark.ml import Pipeline, PipelineModel
    from pyspark.ml.evaluation import BinaryClassificationEvaluator

    from spark_tensorflow_distributor.ml import KerasClassificationGroupModel, KerasClassifier

    classifier = KerasClassifier(modelFn=two_classes, groupCol=["region", "store"], numGroupTasks=2, epochs=2)
    pipeline = Pipeline(stages=[classifier])
    model = pipeline.fit(regions)
    stage = model.stages[0]
    assert isinstance(stage, KerasClassificationGroupModel)
    assert stage.uid == classifier.uid
    assert [tuple(row)[:2] for row in stage.failures.collect()] == [(1, 5)]
    assert "a classifier's labels" in stage.failures.first()["error"]
    rows = model.transform(regions).collect()
    for row in rows:
        assert (row["prediction"] is None) == (row["store"] == 5)
        assert (row["probability"] is None) == (row["store"] == 5)
    one = next(row for row in rows if row["store"] == 2)
    expected = stage.kerasModel(0, 2).predict(np.array([one["features"].toArray()]), verbose=0)[0, 0]
    np.testing.assert_allclose(one["probability"].toArray(), [1 - expected, expected], rtol=1e-4)
    renamed = regions.where("store = 2").withColumnsRenamed({"store": "shop", "features": "x"})
    changes = {stage.groupCol: ["region", "shop"], stage.featuresCol: "x"}
    other = next(row for row in stage.transform(renamed, changes).collect() if row["id"] == one["id"])
    np.testing.assert_allclose(other["probability"].toArray(), one["probability"].toArray(), rtol=1e-5)
    model.save(f"{tmp_path}/pipeline")
    loaded = PipelineModel.load(f"{tmp_path}/pipeline")
    loaded.stages[0].setHandleInvalid("skip")
    again = loaded.transform(regions)
    assert again.count() == 12 * 5
    assert again.where("store = 2").first()["probability"] is not None
    assert 0 <= BinaryClassificationEvaluator().evaluate(again) <= 1
    stage.unpersist()


def test_params_without_effect_are_refused(regions):
    from spark_tensorflow_distributor.ml import KerasRegressor

    with pytest.raises(ConfigurationError, match="maxRestarts has no effect with groupCol"):
        KerasRegressor(modelFn=build, groupCol="store", inputCols=COLUMNS, maxRestarts=1).fit(regions)


def test_models_below_a_path(regions, tmp_path):
    from spark_tensorflow_distributor.ml import KerasRegressor

    regressor = KerasRegressor(
        modelFn=one_input, groupCol="region", inputCols=["id"], labelCol="y", numGroupTasks=1, groupOrderCol="id",
        shuffleGroups=False, batchSize=1, groupModelsPath=f"{tmp_path}/models",
    )  # fmt: skip
    some = regions.where("store = 1 AND id < 40").withColumn("y", regions["id"] * 0.001)
    models = [regressor.fit(rows) for rows in (some.repartition(3), some.orderBy("b"))]
    weights = [model.models.first()["model"] for model in models]
    assert weights[0] == weights[1]
    descending = regressor.copy({regressor.groupOrderCol: ["b"]}).fit(some)
    assert descending.models.first()["model"] != weights[0]
    assert len(list((tmp_path / "models").iterdir())) == 3
    with pytest.raises(TrainingFailedError, match="no such model"):
        regressor.setModelFn(no_model).fit(some)
    assert len(list((tmp_path / "models").iterdir())) == 3


def no_model():
    raise KeyError("no such model")


def test_what_groups_do_not_offer_fails_before_the_job(regions):
    from spark_tensorflow_distributor.ml import KerasRegressor

    with pytest.raises(ConfigurationError, match="train_data"):
        KerasRegressor(modelFn=lambda train_data: None, groupCol="store", inputCols=COLUMNS, labelCol="y").fit(regions)
    with pytest.raises(DataError, match="also a column of the table of models"):
        fit_groups(
            regions.withColumnRenamed("store", "Error"), build, group_columns="Error", feature_columns=COLUMNS,
            label_column="y",
        )  # fmt: skip
