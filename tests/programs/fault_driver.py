"""A driver on a host of the cluster, which starts runs on request: stdin has one JSON object per line.

``{"id", "options", "kwargs", "rows"}`` starts a run, ``{"probe": n}`` requests ``n`` slots at once. For each request,
it prints a line ``RESULT {...}`` at the end. With ``"once"`` in argv[2] it makes one run, like a user's program.
"""

import json
import sys
import threading
import time
import traceback

import numpy as np
from driver import print_result, session

from spark_tensorflow_distributor import MirroredStrategyRunner


def training():
    """Return the training function of all runs; it is nested, so that it is pickled by value."""

    def train(events, epochs=4, watch=20, pause=0.03, faults=(), data=None, value_kills=False, dropout=True):
        import os
        import signal
        import time

        import numpy as np
        import tensorflow as tf
        from sklearn.datasets import load_digits

        from spark_tensorflow_distributor import get_context

        context = get_context()
        here = f"{context.attempt}-{context.rank}"

        def record_event(name, text=""):
            with open(f"{events}/{name}.part", "w") as file:
                file.write(text)
            os.replace(f"{events}/{name}.part", f"{events}/{name}")

        class Killing:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        def due(position):
            return [
                fault["do"]
                for fault in faults
                if (fault.get("attempt", 0), fault["rank"]) == (context.attempt, context.rank)
                and (fault["at"] == position)
            ]

        def inject(what):
            if what == "raise":
                raise RuntimeError("the function's own fault")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "hang":
                time.sleep(3600)
            if what == "memory":
                import resource

                resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
                bytearray(4 << 30)
            if what == "exit":
                os._exit(7)
            if what == "half a checkpoint":
                from spark_tensorflow_distributor.resume import snapshot

                whole = snapshot.write

                def half(file, facts, state):
                    if facts:
                        file.write(b"PK\x03\x04 half of one")
                        file.flush()
                        os.kill(os.getpid(), signal.SIGKILL)
                    whole(file, facts, state)

                snapshot.write = half

        class Watch(tf.keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch

            def on_train_batch_end(self, batch, logs=None):
                position = self.epoch * 14 + batch + 1
                if position == 1 or not hasattr(self, "first"):
                    self.first = position
                    record_event(f"first-{here}", f"{position} {time.time()}")
                if position >= watch and not hasattr(self, "has_reached"):
                    self.has_reached = True
                    record_event(f"step-{here}", str(os.getpid()))
                if context.log_dir:
                    with open(f"{context.log_dir}/rank{context.rank}", "a") as file:
                        print(position, file=file)
                for what in due(position):
                    inject(what)
                time.sleep(pause)

        tf.keras.utils.set_random_seed(7)
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Input((64,)),
                tf.keras.layers.Dense(32, activation="relu"),
                tf.keras.layers.Dropout(0.2 if dropout else 0.0, seed=3),
                tf.keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        record_event(f"began-{here}", str(os.getpid()))
        if data is None:
            images, labels = load_digits(return_X_y=True)
            images = (images[:1764] / 16).astype("float32")
            rows = tf.data.Dataset.from_tensor_slices((images, labels[:1764])).shuffle(1764, seed=1).batch(126)
            options = tf.data.Options()
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
            rows = rows.with_options(options)
        else:
            rows = data.to_tf([f"p{place}" for place in range(64)], "label", batch_size=126, stack=True)
        history = model.fit(rows, epochs=epochs, callbacks=[Watch()])
        weights = [np.asarray(weight) for weight in model.get_weights()]
        if value_kills and context.attempt == 0 and context.is_chief:
            return Killing()
        return weights, history.history, context.world_size

    return train


def digit_rows(spark, seconds):
    """Return the digits as a DataFrame that takes some seconds to compute; with 0, one whose size Spark knows."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    names = [f"p{place}" for place in range(64)]
    table = np.c_[images[:1764] / 16, labels[:1764]].astype("float32").tolist()
    schema = ", ".join(f"{name} float" for name in [*names, "label"])
    if not seconds:
        return spark.createDataFrame(table, schema)
    frame = spark.createDataFrame(spark.sparkContext.parallelize(table, 6), schema)

    def slowly(batches):
        for batch in batches:
            time.sleep(seconds)
            yield batch

    return frame.mapInArrow(slowly, frame.schema)


def run(spark, order):
    """Make one run, and print its outcome."""
    outcome, kwargs, started = {"id": order["id"]}, dict(order["kwargs"]), time.time()
    for key, value in order.get("conf", {}).items():
        spark.conf.set(key, value)
    runner = MirroredStrategyRunner(use_gpu=False, spark=spark, **{"num_slots": 3, **order["options"]})
    try:
        if "rows" in order:
            kwargs["data"] = digit_rows(spark, order["rows"])
        weights, history, workers = runner.run(training(), **kwargs)
        np.savez(f"{kwargs['events']}/weights.npz", *weights)
        outcome |= {"history": history, "workers": workers}
    except BaseException as error:
        outcome |= {"error": type(error).__name__, "message": str(error), "notes": getattr(error, "__notes__", [])}
        outcome |= {"cause": repr(error.__cause__), "traceback": traceback.format_exc()}
    finally:
        for key in order.get("conf", {}):
            spark.conf.unset(key)
    outcome["seconds"] = time.time() - started
    if runner.report is not None:
        outcome["attempts"] = [
            {
                "root": attempt.root_cause,
                "kinds": {rank: failure.kind for rank, failure in attempt.failures.items()},
                "seconds": attempt.seconds,
                "checkpoints": len(attempt.checkpoints),
                "resumed": list(attempt.resumed),
                "warnings": [text for worker in attempt.workers.values() for text in worker.warnings],
            }
            for attempt in runner.report.attempts
        ]
    print_result(outcome)


def main():
    spark = session()
    spark.sparkContext.setLogLevel("ERROR")
    if sys.argv[2] == "once":
        run(spark, json.loads(sys.argv[3]))
        spark.stop()
        return
    print_result({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if "probe" in order:
            count = order["probe"]
            frame = spark.range(0, count, 1, count).mapInArrow(lambda batches: batches, "id long", barrier=True)
            print_result({"id": order["id"], "slots": len(frame.collect())})
        else:
            threading.Thread(target=run, args=(spark, order)).start()


if __name__ == "__main__":
    main()
