"""Params of the estimators and models keep the contract of pyspark.ml. No JVM is needed for that."""

import inspect

import numpy as np
import pytest
from pyspark.ml.param import Param
from pyspark.ml.tuning import ParamGridBuilder

from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.ml import (
    KerasClassificationModel,
    KerasClassifier,
    KerasRegressionModel,
    KerasRegressor,
)
from spark_tensorflow_distributor.ml.params import RUNNER_ARGUMENTS
from spark_tensorflow_distributor.runner import MirroredStrategyRunner

CLASSES = [KerasClassifier, KerasRegressor, KerasClassificationModel, KerasRegressionModel]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_param_has_a_doc_a_getter_a_setter_and_an_argument(cls):
    instance = cls()
    names = [param.name for param in instance.params]
    assert names
    assert list(inspect.signature(cls).parameters) == sorted(names)
    for param in instance.params:
        assert isinstance(param, Param)
        assert param.doc
        assert param.parent == instance.uid
        title = param.name[0].upper() + param.name[1:]
        assert getattr(cls, f"set{title}").__doc__
        assert getattr(cls, f"get{title}").__doc__
        if instance.hasDefault(param):
            assert getattr(instance, f"get{title}")() == instance.getOrDefault(param)
    assert all(f"{name}: " in instance.explainParams() for name in names)


def test_setting_copying_and_clearing():
    classifier = KerasClassifier(epochs=3, numSlots=2, probabilityCol=None)
    assert classifier.setBatchSize(64).getBatchSize() == 64
    assert classifier.getProbabilityCol() == "probability"
    other = classifier.copy({classifier.epochs: 7})
    assert (other.uid, other.getEpochs(), classifier.getEpochs()) == (classifier.uid, 7, 3)
    other.setModelParams({"units": 1})
    assert classifier.getModelParams() == {}
    classifier.clear(classifier.epochs)
    assert classifier.getEpochs() == 1
    assert classifier.setParams(epochs=4, seed=-5).getSeed() == -5
    grid = ParamGridBuilder().addGrid(classifier.modelParams, [{"units": np.int64(8)}, {"units": 16}]).build()
    assert [each[classifier.modelParams] for each in grid] == [{"units": 8}, {"units": 16}]
    assert type(grid[0][classifier.modelParams]["units"]) is int


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"epoch": 3}, r"^KerasRegressor has no Param 'epoch' \(did you mean 'epochs'\?\)\.$"),
        ({"num_slots": 3}, "did you mean 'numSlots'"),
        ({"zzz": 3}, "has no Param 'zzz'. Its Params are .*, epochs, "),
        ({"epochs": 0}, 'param "epochs". It is 0; it must be at least 1'),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"useGpu": "yes"}, "True or False"),
        ({"labelCol": 3}, "string"),
        ({"epochs": float("nan")}, "whole number"),
        ({"modelFn": "build"}, "must be a function"),
        ({"kerasModel": "x"}, "has no Param 'kerasModel'"),
        ({"model": "x"}, r'param "model"\. It is a str; it must be a compiled Keras model\. .* set modelFn'),
        ({"model": len}, "must be a compiled Keras model"),
        ({"inputCols": 5}, "It is an int; it must be the name of a column, or a list of names"),
        ({"inputCols": ["a", 5]}, "It contains 5; all names of columns must be strings"),
        ({"inputCols": ["a", "b", "a"]}, "It contains 'a' more than once"),
        ({"groupCol": {"a": 1}}, "It is a dict; it must be the name of a column"),
        ({"handleInvalid": "drop"}, "It is 'drop'; it must be 'keep', 'skip' or 'error'"),
        ({"gradientCompression": "zip"}, "It is 'zip'; it must be 'bfloat16' or 'float16'"),
        ({"runCallbacks": object()}, "must be a list of RunCallback objects"),
        ({"pyModules": 5}, "It is an int; it must be a list of module objects"),
        ({"modelParams": [1]}, "a dict of names to values"),
        ({"modelParams": {1: 2}}, "all names must be strings"),
        ({"env": {"A": 1}}, "The value of 'A' is an int; all values must be strings"),
        ({"startTimeout": 0}, "number of seconds above 0"),
        ({"pyModules": "mine"}, "list of module objects"),
    ],
)
def test_wrong_values_are_refused_where_they_are_set(params, text):
    with pytest.raises(TypeError, match=text):
        KerasRegressor(**params)


def test_a_model_is_no_function():
    class Model:
        def __call__(self):
            pass

    Model.__module__ = "keras.src.models"
    model = Model()
    with pytest.raises(TypeError, match=r"It is a Model; it must be a function\. .*set the Param model"):
        KerasRegressor(modelFn=model)
    assert KerasRegressor(model=model).getModel() is model


def test_values_of_environment_variables_are_not_shown():
    regressor = KerasRegressor(env={"KEY": "secret"})
    assert regressor.getEnv() == {"KEY": "secret"}
    assert type(regressor.runner_arguments()["env"]) is dict
    assert "{'KEY': ...}" in regressor.explainParam("env")
    assert "secret" not in f"{regressor.explainParams()} {regressor.getEnv()} {regressor.extractParamMap()}"


def test_thresholds():
    assert KerasClassifier(thresholds=[0, 1]).getThresholds() == [0.0, 1.0]
    with pytest.raises(TypeError, match="It is an int; it must be a list of numbers"):
        KerasClassifier(thresholds=1)
    for wrong in ([-1, 1], [0, 0], [float("nan"), 1], ["a", 1]):
        with pytest.raises(TypeError, match="above 0"):
            KerasClassifier(thresholds=wrong)


def test_all_arguments_of_the_runner_are_params_with_its_meaning():
    parameters = inspect.signature(MirroredStrategyRunner).parameters
    assert set(RUNNER_ARGUMENTS.values()) == set(parameters) - {"spark"}
    arguments = KerasClassifier(numSlots=3).runner_arguments()
    assert RunnerConfig(**arguments).num_slots == 3
    # Silent and on CPUs, like the estimators of pyspark.ml; all else as in the runner.
    changed = {"num_slots", "use_gpu", "log_to_driver"}
    assert {k: v for k, v in arguments.items() if k not in changed} == {
        k: parameters[k].default for k in arguments if k not in changed
    }
