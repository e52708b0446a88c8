"""One model for each group: the numbers of a new model for each, failures by key, and predictions."""

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


@pytest.mark.parametrize("model", [build, lambda: build(4, 0.5), build_noisy], ids=["dense", "dropout", "stateful"])
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


def test_a_callback_of_batches_is_refused():
    import keras

    class EachBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise AssertionError

    with pytest.raises(ConfigurationError, match="EachBatch has on_train_batch_end"):
        trained_by(trainer_of(build, callbacks=lambda: [EachBatch()]), 1)


@pytest.fixture(scope="module", autouse=True)
def keras():
    """Keras in the test's own process, imported before a test's environment is compared."""
    import keras

    return keras


@pytest.fixture(scope="module")
def df(spark):
    """Stores 0 to 7 with 12 rows each; 6 has NaN in its labels, 7 a null among its features."""
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
    with pytest.raises(DataError, match="no model for the group"):
        groups.keras_model(6)


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
    with pytest.raises(DataError, match="no column 'shop'"):
        fit_groups(df, build, group_columns="shop", feature_columns=COLUMNS, label_column="y")
    with pytest.raises(ConfigurationError, match="epochs is 0"):
        fit_groups(df, build, group_columns="store", feature_columns=COLUMNS, label_column="y", epochs=0)


@pytest.fixture(scope="module")
def regions(df):
    """Regions and stores, with classes 0 and 1; the store 9 has a label that is no class."""
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
