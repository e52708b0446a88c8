"""Estimators and models as stages of pyspark.ml: pipelines, evaluators, persistence, labels and inputs."""

import sys

import numpy as np
import pytest
from pyspark import cloudpickle
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import IndexToString, StringIndexer, VectorAssembler
from pyspark.sql import functions as F

from spark_tensorflow_distributor import (
    ConfigurationError,
    DataError,
    SerializationError,
    TrainingFailedError,
)
from spark_tensorflow_distributor.ml import (
    KerasClassificationModel,
    KerasClassifier,
    KerasRegressionModel,
    KerasRegressor,
)


@pytest.fixture(scope="module", autouse=True)
def functions_of_this_file():
    """Let the workers, which cannot import this file, receive its functions by value."""
    import keras  # noqa: F401 (it sets environment variables, which a single test may not)

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def classes(num_features, num_classes, units=8, logits=False):
    import keras

    model = keras.Sequential(
        [
            keras.Input((num_features,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.Dense(num_classes, activation=None if logits else "softmax"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    return model


def line(num_features, outputs=1):
    import keras

    model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(outputs)])
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    return model


@pytest.fixture(scope="module")
def plants(spark):
    """240 rows of three kinds, which two numbers distinguish."""
    kind = F.col("id") % 3
    rows = spark.range(0, 240, 1, 3).select(
        "id",
        (kind + F.rand(1) / 4).alias("a"),
        (-kind + F.rand(2) / 4).cast("float").alias("b"),
        F.element_at(F.array(F.lit("rose"), F.lit("oak"), F.lit("fern")), (kind + 1).cast("int")).alias("kind"),
        kind.cast("int").alias("label"),
        (F.col("id") % 5 == 0).alias("held_out"),
    )
    return rows.cache()


@pytest.fixture(scope="module")
def features(plants):
    return VectorAssembler(inputCols=["a", "b"], outputCol="features").transform(plants).cache()


@pytest.fixture(scope="module")
def classifier():
    return KerasClassifier(modelFn=classes, epochs=2, batchSize=24, numSlots=2)


@pytest.fixture(scope="module")
def fitted(classifier, features):
    return classifier.fit(features, {classifier.epochs: 6})


def test_a_pipeline_from_strings_to_strings_that_is_saved_and_loaded(plants, classifier, tmp_path):
    pipeline = Pipeline(
        stages=[
            StringIndexer(inputCol="kind", outputCol="index", stringOrderType="alphabetAsc"),
            VectorAssembler(inputCols=["a", "b"], outputCol="features"),
            classifier.copy({classifier.labelCol: "index", classifier.epochs: 6}),
            IndexToString(inputCol="prediction", outputCol="name"),
        ]
    )
    model = pipeline.fit(plants)
    scored = model.transform(plants).cache()
    types = {field.name: field.dataType.simpleString() for field in scored.schema}
    assert [types[name] for name in ("prediction", "probability", "rawPrediction")] == ["double", "vector", "vector"]
    assert scored.columns[: len(plants.columns)] == plants.columns
    assert not [name for name in scored.columns if name.endswith("_output")]
    stage = model.stages[2]
    assert (stage.labels, stage.numClasses, stage.uid) == (["fern", "oak", "rose"], 3, classifier.uid)
    # The metadata of the prediction names the classes.
    assert scored.where("name = kind").count() > 220
    accuracy = MulticlassClassificationEvaluator(labelCol="index", metricName="accuracy").evaluate(scored)
    assert accuracy > 0.9
    assert MulticlassClassificationEvaluator(labelCol="index", metricName="logLoss").evaluate(scored) < 0.5
    pipeline.save(str(tmp_path / "pipeline"))
    model.save(str(tmp_path / "model"))
    again = PipelineModel.load(str(tmp_path / "model"))
    assert again.stages[2].labels == ["fern", "oak", "rose"]
    wanted, found = (each.orderBy("id").select("probability").collect() for each in (scored, again.transform(plants)))
    np.testing.assert_allclose([row[0] for row in found], [row[0] for row in wanted], rtol=1e-6)
    loaded = Pipeline.load(str(tmp_path / "pipeline"))
    assert loaded.getStages()[2].getModelFn()(2, 3).count_params() == classes(2, 3).count_params()
    assert loaded.getStages()[2].getEpochs() == 6
    with pytest.raises(
        SerializationError, match=r"contains a .*KerasClassificationModel, not a .*KerasRegressionModel"
    ):
        KerasRegressionModel.load(f"{tmp_path}/model/stages/2_{stage.uid}")


def test_the_history_the_keras_model_and_its_metrics(fitted, features, tmp_path):
    assert len(fitted.history["accuracy"]) == fitted.summary.totalIterations == 6
    assert fitted.summary.objectiveHistory == fitted.history["loss"]
    assert fitted.summary.report.succeeded
    found = fitted.evaluate(features)
    assert set(found) == {"loss", "accuracy"}
    scored = fitted.transform(features)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    assert found["accuracy"] == pytest.approx(evaluator.evaluate(scored), abs=1e-6)
    rows = features.orderBy("id").limit(5).collect()
    local = fitted.kerasModel.predict(np.array([row.features.toArray() for row in rows]), verbose=0)
    wanted = [row.probability for row in scored.orderBy("id").limit(5).collect()]
    np.testing.assert_allclose(local, np.array([each.toArray() for each in wanted]), rtol=1e-5)
    path = str(tmp_path / "model")
    fitted.write().overwrite().save(path)
    fitted.write().overwrite().save(path)
    with pytest.raises(SerializationError, match=r"already exists\. .* \.write\(\)\.overwrite\(\)\.save\("):
        fitted.save(path)
    again = KerasClassificationModel.load(path)
    assert (again.history, again.uid, again.summary.report) == (
        fitted.history,
        fitted.uid,
        None,
    )
    assert again.evaluate(features) == pytest.approx(found)


def test_columns_left_out_and_thresholds(fitted, features):
    scored = fitted.transform(features, {fitted.rawPredictionCol: "", fitted.predictionCol: "class"})
    assert scored.columns == [*features.columns, "probability", "class"]
    never_two = fitted.copy({fitted.thresholds: [1e-9, 1e-9, 1.0]})
    assert never_two.transform(features).where("prediction = 2").count() == 0
    with pytest.raises(ConfigurationError, match="thresholds has 2 numbers, but the model has 3 classes"):
        fitted.copy({fitted.thresholds: [0.5, 0.5]}).transform(features)


def test_logits_and_one_output_for_two_classes(features, classifier):
    def binary(num_features):
        import keras

        model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.05), keras.losses.BinaryCrossentropy(from_logits=True))
        return model

    two = features.where("label < 2")
    model = classifier.copy({classifier.modelFn: binary}).fit(two)
    scored = model.transform(two).cache()
    assert model.numClasses == 2
    row = scored.first()
    assert row.rawPrediction[0] == -row.rawPrediction[1]
    assert row.probability[1] == pytest.approx(1 / (1 + np.exp(-row.rawPrediction[1])))
    assert row.prediction == float(row.probability[1] > 0.5)
    areas = [
        BinaryClassificationEvaluator(rawPredictionCol=name).evaluate(scored)
        for name in ("rawPrediction", "probability")
    ]
    assert areas[0] == pytest.approx(areas[1], abs=1e-6)

    model = classifier.copy({classifier.modelParams: {"logits": True}}).fit(features)
    row = model.transform(features).first()
    powers = np.exp(row.rawPrediction.toArray())
    np.testing.assert_allclose(row.probability.toArray(), powers / powers.sum(), rtol=1e-6)


def test_several_outputs_weights_and_validation(spark):
    # Rows of weight 0 have labels that would ruin the line.
    rows = spark.range(0, 512, 1, 2).select(
        (F.rand(1) - 0.5).alias("x"),
        (F.rand(2) - 0.5).alias("z"),
        (F.col("id") % 2).alias("weight"),
        (F.col("id") % 8 == 0).alias("is_validation"),
    )
    right = F.array(2 * F.col("x") - F.col("z"), F.col("z") + 1)
    rows = rows.withColumn("y", F.when(F.col("weight") == 1, right).otherwise(F.array(F.lit(-50.0), F.lit(50.0))))
    rows = rows.withColumn("second", F.col("y")[1]).cache()
    regressor = KerasRegressor(
        modelFn=line, modelParams={"outputs": 2}, inputCols=["x", "z"], labelCol="y", weightCol="weight",
        validationIndicatorCol="is_validation", epochs=5, batchSize=32, numSlots=2,
    )  # fmt: skip
    model = regressor.fit(rows)
    assert model.history.keys() >= {"loss", "val_loss", "mae", "val_mae"}
    counted = rows.where("weight = 1")
    assert model.evaluate(counted)["mae"] < 0.3
    scored = model.transform(counted)
    assert scored.schema["prediction"].dataType.simpleString() == "vector"
    row = scored.first()
    np.testing.assert_allclose(row.prediction.toArray(), row.y, atol=0.8)

    single = regressor.copy({regressor.labelCol: "second", regressor.modelParams: {}}).fit(rows)
    scored = single.transform(counted)
    assert scored.schema["prediction"].dataType.simpleString() == "double"
    assert RegressionEvaluator(labelCol="second", metricName="mae").evaluate(scored) < 0.3
    with pytest.raises(DataError, match="label column 'y' has 2 numbers per row, but the model's output has 1"):
        regressor.copy({regressor.modelParams: {}}).fit(rows)
    with pytest.raises(DataError, match=r"The weight column 'weight' contains -1; weights must not be negative"):
        regressor.fit(rows.withColumn("weight", -F.col("weight")))
    with pytest.raises(Exception, match="'is_validation' contains null"):
        regressor.fit(rows.withColumn("is_validation", F.when(F.col("x") > 0, F.lit(True))))


def test_strings_and_numbers_go_to_inputs_by_name(plants):
    def by_name(train_data):
        import keras

        kind = keras.Input((), name="kind", dtype="string")
        a = keras.Input((1,), name="a")
        lookup = train_data.adapt(keras.layers.StringLookup(output_mode="one_hot"), "kind")
        joined = keras.layers.Concatenate()([lookup(kind), a])
        model = keras.Model({"kind": kind, "a": a}, keras.layers.Dense(3, activation="softmax")(joined))
        model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
        return model

    model = KerasClassifier(modelFn=by_name, inputCols=["kind", "a"], epochs=4, batchSize=24, numSlots=2).fit(plants)
    scored = model.transform(plants.drop("label")).join(plants.select("id", "label"), "id")
    assert scored.where("prediction = label").count() == 240


def test_a_model_object_own_fit_and_callbacks(features, classifier, tmp_path):
    import keras

    @keras.saving.register_keras_serializable("of_this_test")
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    given = keras.Sequential([keras.Input((2,)), Doubled(), keras.layers.Dense(3, activation="softmax")])
    given.compile("adam", "sparse_categorical_crossentropy")
    before = given.get_weights()

    def fit(train_data, model, feature_columns, label_column, batch_size, callbacks, epochs, passes):
        data = train_data.to_tf(feature_columns, label_column, batch_size=batch_size)
        for _ in range(passes):
            model.fit(data, epochs=epochs, callbacks=callbacks)
        return model

    def stopping():
        import keras

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.stop_training = epoch == 2

        return [Stop()]

    estimator = KerasClassifier(
        model=given, fitFn=fit, callbacksFn=stopping, modelParams={"passes": 2}, epochs=9, batchSize=24, numSlots=2
    )
    model = estimator.fit(features)
    assert [entry["epoch"] for entry in model.summary.epochs] == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(given.get_weights()[0], before[0])
    assert not np.allclose(model.kerasModel.get_weights()[0], before[0])
    estimator.save(str(tmp_path / "estimator"))
    model.save(str(tmp_path / "model"))
    again = KerasClassificationModel.load(str(tmp_path / "model"))
    np.testing.assert_array_equal(again.kerasModel.get_weights()[0], model.kerasModel.get_weights()[0])
    loaded = KerasClassifier.load(str(tmp_path / "estimator"))
    np.testing.assert_array_equal(loaded.getModel().get_weights()[0], before[0])
    assert loaded.getModelParams() == {"passes": 2}


def test_a_model_object_in_local_mode_is_not_changed(features):
    import keras

    given = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
    given.compile("sgd", "sparse_categorical_crossentropy")
    before = given.get_weights()
    estimator = KerasClassifier(model=given, batchSize=24, localMode=True)
    first, second = (estimator.fit(features).kerasModel.get_weights() for _ in range(2))
    np.testing.assert_array_equal(given.get_weights()[0], before[0])
    assert not np.allclose(first[0], before[0])
    np.testing.assert_array_equal(first[0], second[0])


def test_mistakes_are_reported_with_their_cause(plants, features, classifier):
    def refused(df, error, text, **params):
        with pytest.raises(error, match=text):
            classifier.copy().setParams(**params).fit(df)

    refused(features, DataError, "labelCol names the column 'labl', which .*did you mean 'label'", labelCol="labl")
    refused(features, DataError, "'kind', a column of type string.*StringIndexer", labelCol="kind")
    refused(plants, DataError, "featuresCol names the column 'features', which the DataFrame does not have")
    refused(features, DataError, "must be boolean", validationIndicatorCol="label")
    refused(features, DataError, "weightCol is 'kind', a column of type string", weightCol="kind")
    refused(features, ConfigurationError, "modelFn: classes.* cannot be called.*'depth'", modelParams={"depth": 3})
    refused(features, ConfigurationError, "depth, which neither", modelParams={"depth": 3}, fitFn=lambda model: model)
    with pytest.raises(ConfigurationError, match=r"KerasRegressor has no model\. Set modelFn"):
        KerasRegressor().fit(features)
    with pytest.raises(ConfigurationError, match="contains no Keras model"):
        KerasRegressionModel().transform(features)
    # Errors that only workers can see: three classes for two outputs, labels that are not classes, a loss for one-hot
    # labels.
    with pytest.raises(
        DataError, match="label column 'label' contains 2; a classifier's labels are whole numbers from 0"
    ):
        classifier.copy().setParams(modelParams={"num_classes": 2}).fit(features)
    half = features.withColumn("label", F.col("label") / 2)
    with pytest.raises(DataError, match=r"contains 0\.5"):
        classifier.copy().setParams(modelParams={"num_classes": 3}).fit(half)
    with pytest.raises(DataError, match=r"column 'label'.* are null\. Drop these rows in Spark") as caught:
        classifier.fit(features.withColumn("label", F.when(F.col("label") < 2, F.col("label"))))
    assert "Traceback" not in str(caught.value)  # which would show the frames of the library alone

    def of_text(num_features):
        raise AssertionError(num_features)

    with pytest.raises(DataError, match=r"num_features=None, because the feature column 'kind' is of type string"):
        KerasClassifier(modelFn=of_text, inputCols=["a", "kind"]).fit(plants)
    # The second text is that of Spark 3.5, which skips a stage without rows.
    with pytest.raises(DataError, match=r"There are no rows to train on: the DataFrame is empty|has no rows\. Did a"):
        classifier.copy().setParams(modelParams={"num_classes": 3}).fit(features.where("a > 9"))

    def uncompiled():
        import keras

        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])

    with pytest.raises(TrainingFailedError, match="The model is not compiled"):
        KerasClassifier(modelFn=uncompiled).fit(features)
    # The driver has the model.
    with pytest.raises(ConfigurationError, match="The model is not compiled"):
        KerasClassifier(model=uncompiled()).fit(features)
    squares = uncompiled()
    squares.compile("sgd", "mse")
    with pytest.raises(ConfigurationError, match="loss is mse, which compares the output's 3 values"):
        KerasClassifier(model=squares).fit(features)
