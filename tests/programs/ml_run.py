"""A pipeline with a Keras stage where the executors are other processes. argv: settings, a folder.

Without a master in the settings it goes over Spark Connect.
"""

import json
import sys

from driver import print_result, session
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit, TrainValidationSplitModel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_tensorflow_distributor.ml import KerasClassifier


def build(num_features, units):
    import keras

    model = keras.Sequential(
        [
            keras.Input((num_features,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    return model


spark = (
    session() if "spark.master" in json.loads(sys.argv[1]) else SparkSession.builder.remote("local[2]").getOrCreate()
)
folder = sys.argv[2]
late = F.col("id") % 2 == 0
df = spark.range(0, 200, 1, 2).select(
    (F.when(late, 1).otherwise(0) + F.rand(1) / 2).alias("a"),
    F.rand(2).alias("b"),
    F.when(late, "late").otherwise("early").alias("text"),
)
classifier = KerasClassifier(
    modelFn=build, modelParams={"units": 4}, labelCol="label", epochs=3, batchSize=20, numSlots=2
)
stages = [
    StringIndexer(inputCol="text", outputCol="label", stringOrderType="alphabetAsc"),
    VectorAssembler(inputCols=["a", "b"], outputCol="features"),
    classifier,
]
evaluator = BinaryClassificationEvaluator()
model = Pipeline(stages=stages).fit(df)
result = {"auc": evaluator.evaluate(model.transform(df)), "epochs": model.stages[2].summary.totalIterations}
result["labels"] = model.stages[2].labels
model.write().overwrite().save(f"{folder}/model")
result["loaded"] = evaluator.evaluate(PipelineModel.load(f"{folder}/model").transform(df))
classifier.save(f"{folder}/estimator")
result["params"] = KerasClassifier.load(f"{folder}/estimator").getModelParams()
result["tensorflow"] = "tensorflow" in sys.modules

grid = ParamGridBuilder().addGrid(classifier.modelParams, [{"units": 1}, {"units": 4}]).build()
validator = TrainValidationSplit(
    estimator=Pipeline(stages=stages), estimatorParamMaps=grid, evaluator=evaluator, parallelism=2, seed=1
)
tuned = validator.fit(df)
tuned.save(f"{folder}/tuned")
result["metrics"] = [float(each) for each in tuned.validationMetrics]
result["tuned"] = float(TrainValidationSplitModel.load(f"{folder}/tuned").validationMetrics[0])
print_result(result)
spark.stop()
