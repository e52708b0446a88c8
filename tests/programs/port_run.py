"""Trains on TensorFlow's own runtime: with closed ports, with the filter on its ports, and without either."""

import sys

from driver import print_result, session

from spark_tensorflow_distributor import MirroredStrategyRunner


def training():
    """Return the training function; it is nested, so that it is pickled by value."""

    def train(events, custom):
        import json
        import os
        import time

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        rank = get_context().rank
        strategy = tf.distribute.MultiWorkerMirroredStrategy() if custom else tf.distribute.get_strategy()
        rows = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")

        def trained():
            with strategy.scope():
                tf.keras.utils.set_random_seed(1)
                model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(1)])
                model.compile("sgd", "mse")
            model.fit(rows, rows[:, :1], batch_size=24, epochs=2, verbose=0)
            return model

        model = trained()
        with open(f"{events}/port-{rank}.part", "w") as file:
            file.write(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][rank])
        os.replace(f"{events}/port-{rank}.part", f"{events}/port-{rank}")
        while not os.path.exists(f"{events}/go"):
            time.sleep(0.05)
        model.fit(rows, rows[:, :1], batch_size=24, epochs=2, verbose=0)
        loss = model.evaluate(rows, rows[:, :1], batch_size=24, verbose=0)
        model.predict(rows, batch_size=24, verbose=0)
        trained()
        return loss

    return train


def main():
    spark = session()
    spark.sparkContext.setLogLevel("ERROR")
    runs = (
        ("closed", "true", "true", False),
        ("filtered", "false", "true", False),
        ("custom", "true", "true", True),
        ("open", "false", "false", False),
    )
    for name, closes, filters, custom in runs:
        spark.conf.set("tensorflow.spark.distributor.closePort", closes)
        spark.conf.set("tensorflow.spark.distributor.portFilter", filters)
        spark.conf.set("tensorflow.spark.distributor.collectives", "tensorflow")
        runner = MirroredStrategyRunner(num_slots=3, use_gpu=False, use_custom_strategy=custom, spark=spark)
        loss = runner.run(training(), events=f"{sys.argv[2]}/{name}", custom=custom)
        warnings = [text for worker in runner.report.workers.values() for text in worker.warnings]
        print_result({"run": name, "loss": loss, "warnings": warnings})
    spark.stop()


if __name__ == "__main__":
    main()
