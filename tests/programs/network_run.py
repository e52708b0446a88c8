"""Trains over a second network, with proxies in the environment. argv: settings, the proxies, interface."""

import json
import sys

from driver import print_result, session

from spark_tensorflow_distributor import MirroredStrategyRunner


def train(interface):
    import json
    import os

    import numpy as np
    import tensorflow as tf

    def received():
        with open(f"/sys/class/net/{interface}/statistics/rx_bytes") as file:
            return int(file.read())

    before = received()
    model = tf.keras.Sequential([tf.keras.layers.Input((1000,)), tf.keras.layers.Dense(100)])
    model.compile(loss="mse", optimizer="sgd")
    model.fit(np.ones((16, 1000), "float32"), np.ones((16, 100), "float32"), batch_size=8, epochs=2, verbose=0)
    return {"workers": json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"], "received": received() - before}


spark = session()
proxies, interface = json.loads(sys.argv[2]), sys.argv[3]
results = {}
for name, engine, network in (
    ("tensorflow", "tensorflow", "10.78.0.0/16"),
    ("sockets", "sockets", interface),
    ("tensorflow, IPv6", "tensorflow", "fd78::/16"),
    ("sockets, IPv6", "sockets", "fd78::/16"),
):
    spark.conf.set("tensorflow.spark.distributor.collectives", engine)
    spark.conf.set("tensorflow.spark.distributor.workerNetwork", network)
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=proxies, start_timeout=120)
    results[name] = runner.run(train, interface=interface)
spark.conf.set("tensorflow.spark.distributor.workerNetwork", "203.0.113.0/24")
try:
    MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark).run(train, interface=interface)
except Exception as error:
    results["error"] = f"{type(error).__name__}: {error}"
print_result(results)
spark.stop()
