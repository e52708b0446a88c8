"""Trains on the cluster with two workers and with one, and prints the weights of both. argv: settings."""

from driver import print_result, session

from spark_tensorflow_distributor import MirroredStrategyRunner


def train():
    import numpy as np
    import tensorflow as tf

    tf.keras.utils.set_random_seed(3)
    model = tf.keras.Sequential(
        [tf.keras.layers.Input((8,)), tf.keras.layers.Dense(16, activation="tanh"), tf.keras.layers.Dense(1)]
    )
    model.compile(loss="mse", optimizer=tf.keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
    model.fit(x, np.sin(x.sum(axis=1)), batch_size=64, epochs=3, shuffle=False)
    return [weight.tolist() for weight in model.get_weights()]


spark = session()
weights = {}
for num_slots in (2, 1):
    runner = MirroredStrategyRunner(num_slots=num_slots, use_gpu=False, spark=spark)
    weights[num_slots] = runner.run(train)
print_result({"two": weights[2], "one": weights[1], "rendezvous": runner.report.workers[0].rendezvous})
spark.stop()
