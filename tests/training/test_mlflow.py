"""Runs that are recorded in a real MLflow with an SQLite store."""

import json
import os
from pathlib import Path

import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner, MLflowCallback, RunCallback, TrainingFailedError

mlflow = pytest.importorskip("mlflow")

# MLflow and its store use features that their own dependencies have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment, in which TensorFlow and MLflow leave variables when they are imported."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A client of a store with an experiment whose artifacts are in the same folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/store.db")
    client.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    client.uri = f"sqlite:///{folder}/store.db"
    return client


def program():
    """Nested, so that it is pickled by value."""

    def train(rows, epochs, fail_at=None):
        import time

        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        context = get_context()

        class Fail(tf.keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == fail_at and context.attempt == 0:
                    time.sleep(1)  # the last checkpoint may still be in transit
                    raise RuntimeError("once")

        tf.keras.utils.set_random_seed(7)
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        data = rows.to_tf(["a", "b", "c"], "label", batch_size=16, stack=True)
        model.fit(data, epochs=epochs, verbose=0, callbacks=[Fail()])
        return model

    return train


@pytest.fixture(scope="module")
def frame(spark):
    columns = [f"cast(rand({seed}) as float) as {name}" for seed, name in enumerate(("a", "b", "c", "label"))]
    return spark.range(200).selectExpr(*columns).cache()


def test_a_run_with_a_restart_and_a_model(spark, store, frame, monkeypatch):
    callback = MLflowCallback(tracking_uri=store.uri, experiment="tests", params={"note": "first"}, log_model=True)
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, max_restarts=1, callbacks=[callback])
    model = runner.run(program(), rows=frame, epochs=4, fail_at=2)
    run = store.get_run(callback.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "train"
    expected = {
        "epochs": "4", "fail_at": "2", "rows": "DataFrame", "note": "first", "runner.num_slots": "2",
        "runner.max_restarts": "1", "rows.rows": "200", "workers": "2",
    }  # fmt: skip
    assert {name: run.data.params[name] for name in expected} == expected
    assert {"version.tensorflow", "version.pyspark"} <= run.data.params.keys()
    losses = store.get_metric_history(callback.run_id, "loss")
    assert [metric.step for metric in losses] == [0, 1, 2, 3]
    assert [metric.value for metric in losses] == [entry["logs"]["loss"] for entry in runner.report.history]
    assert {"epoch_seconds", "rows_per_second"} <= run.data.metrics.keys()
    tags = run.data.tags
    assert tags["spark_tensorflow_distributor.attempts"] == "2"
    assert "RuntimeError: once" in tags["spark_tensorflow_distributor.attempt_0.failure"]
    assert tags["spark_tensorflow_distributor.status"] == "succeeded"
    report = json.loads(Path(store.download_artifacts(callback.run_id, "report.json")).read_text())
    assert len(report["attempts"]) == 2
    page = Path(store.download_artifacts(callback.run_id, "report.html")).read_text(encoding="utf-8")
    assert page == runner.report.to_html()
    assert page.lower().startswith("<!doctype html>")
    assert "RuntimeError: once" in page
    assert page.count("<svg") >= 2  # the curves and the timeline
    text = Path(store.download_artifacts(callback.run_id, "report.txt")).read_text(encoding="utf-8")
    assert text.startswith("Run succeeded after")

    # Load the model as a user of MLflow would.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    udf = mlflow.pyfunc.spark_udf(spark, f"runs:/{callback.run_id}/model", result_type="double", env_manager="local")
    first = frame.limit(5)
    scored = first.selectExpr("*", "array(a, b, c) as features")
    found = [row.score for row in scored.withColumn("score", udf("features")).collect()]
    features = first.select("a", "b", "c").toPandas().to_numpy("float32")
    assert found == pytest.approx(model.predict(features, verbose=0).ravel().tolist(), rel=1e-5)


def test_failed_and_stopped_runs_are_recorded(spark, store, frame):
    class Stop(RunCallback):
        def on_epoch_end(self, fit, epoch, logs):
            return epoch == 1

    callback = MLflowCallback(tracking_uri=store.uri, experiment="tests", run_name="stopped", log_model=True)
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, callbacks=[callback, Stop()])
    runner.run(program(), rows=frame, epochs=50)
    stopped = store.get_run(callback.run_id)
    assert (stopped.info.status, stopped.info.run_name) == ("FINISHED", "stopped")
    assert stopped.data.tags["spark_tensorflow_distributor.stopped_by"] == "Stop"
    with pytest.raises(TrainingFailedError):
        runner.run(program(), rows=frame, epochs=50, fail_at=1)
    assert callback.run_id != stopped.info.run_id
    failed = store.get_run(callback.run_id)
    assert failed.info.status == "FAILED"
    assert "once" in failed.data.tags["spark_tensorflow_distributor.error"]
    assert [metric.step for metric in store.get_metric_history(callback.run_id, "loss")] == [0]


@pytest.mark.parametrize("legacy", ["", "1"], ids=["keras", "tf_keras"])
def test_autolog_in_the_function_records_one_run(spark, store, legacy):
    experiment = store.create_experiment(f"autolog{legacy}")

    def train():
        import mlflow
        import numpy as np
        import tensorflow as tf

        mlflow.autolog()
        rows = np.ones((64, 3), "float32")
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(rows, rows[:, 0], batch_size=16, epochs=3, verbose=0)

    env = {"MLFLOW_TRACKING_URI": store.uri, "MLFLOW_EXPERIMENT_ID": experiment}
    env |= {"TF_USE_LEGACY_KERAS": legacy} if legacy else {}
    MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=env).run(train)
    (run,) = store.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "3"
    assert [metric.step for metric in store.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]


@pytest.mark.parametrize(("engine", "predicts"), [("sockets", False), ("sockets", True), ("tensorflow", True)], ids=str)
def test_autolog_on_the_chief_alone(spark, store, engine, predicts):
    """After fit, MLflow predicts a few rows to infer the model's signature; the other workers do not join."""
    experiment = store.create_experiment(f"chief-{engine}-{predicts}")

    def train(predicts):
        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        if get_context().is_chief:
            import mlflow

            if predicts:
                mlflow.tensorflow.autolog.__wrapped__(log_input_examples=True, log_model_signatures=True)
            else:
                mlflow.autolog()
        rows = np.ones((64, 3), "float32")
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        losses = [model.fit(rows, rows[:, 0], batch_size=16, epochs=2, verbose=0).history["loss"] for _ in range(2)]
        return losses

    env = {"MLFLOW_TRACKING_URI": store.uri, "MLFLOW_EXPERIMENT_ID": experiment}
    env["MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT"] = "1"  # inference would start a Python that imports TensorFlow
    spark.conf.set("tensorflow.spark.distributor.collectives", engine)
    try:
        runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=env)
        losses = runner.run(train, predicts=predicts)
    finally:
        spark.conf.unset("tensorflow.spark.distributor.collectives")
    runs = store.search_runs([experiment], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    for run, expected in zip(runs, losses, strict=True):
        found = [metric.value for metric in store.get_metric_history(run.info.run_id, "loss")]
        assert found == pytest.approx(expected)


def test_autologging_of_pyspark_ml(spark, store, frame, monkeypatch):
    """MLflow sees an estimator in a pipeline that is tuned: its Params, the search and later metrics."""
    import mlflow.pyspark.ml
    from pyspark.ml import Pipeline
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit

    from spark_tensorflow_distributor.ml import KerasRegressor

    def line(num_features, rate):
        import keras

        model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        return model

    experiment = store.create_experiment("pyspark.ml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    regressor = KerasRegressor(modelFn=line, localMode=True, batchSize=50, env={"TOKEN": "hidden"})
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["a", "b"], outputCol="features"), regressor])
    grid = ParamGridBuilder().addGrid(regressor.modelParams, [{"rate": 0.01}, {"rate": 0.1}]).build()
    evaluator = RegressionEvaluator(metricName="mae")
    split = TrainValidationSplit(estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator, seed=1)
    mlflow.pyspark.ml.autolog()
    try:
        model = split.fit(frame)
        error = evaluator.evaluate(model.transform(frame))
    finally:
        mlflow.pyspark.ml.autolog(disable=True)
    runs = store.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["best_KerasRegressor.modelParams"] in ("{'rate': 0.01}", "{'rate': 0.1}")
    assert error in parent.data.metrics.values()
    files = [each.path for each in store.list_artifacts(parent.info.run_id)]
    assert {"best_parameters.json", "search_results.csv"} <= set(files)
    children = [run.data for run in runs if run is not parent]
    assert sorted(child.params["KerasRegressor.modelParams"] for child in children) == [
        "{'rate': 0.01}",
        "{'rate': 0.1}",
    ]
    assert sorted(child.metrics["mae"] for child in children) == sorted(map(float, model.validationMetrics))
    assert {child.params["KerasRegressor.env"] for child in children} == {"{'TOKEN': ...}"}
