"""Tune a small network with Optuna: trials share one Spark cluster, and bad ones are pruned.

Run it with any Python that has PySpark, TensorFlow, scikit-learn and Optuna: ``python examples/tuning.py``.
"""

import argparse
import os
import sys

# Spark runs its workers with this Python; by default it would use whatever "python3" is in PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

import optuna
from pyspark.sql import SparkSession

from spark_tensorflow_distributor import MirroredStrategyRunner, RunCallback


def train(epochs, learning_rate, units):
    """Train on every worker; this is an ordinary Keras program that knows nothing about Optuna."""
    import tensorflow as tf
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((64,)),
            tf.keras.layers.Dense(units, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(tf.keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train_x, train_y, batch_size=64, epochs=epochs, validation_data=(test_x, test_y), verbose=0)


class PruneTrial(RunCallback):
    """Reports every epoch to an Optuna trial, and stops training when its pruner says so."""

    def __init__(self, trial, metric):
        self.trial, self.metric = trial, metric
        self.pruned = False

    def on_epoch_end(self, fit, epoch, logs):
        self.trial.report(logs[self.metric], epoch)
        self.pruned = self.trial.should_prune()
        return self.pruned


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--parallel", type=int, default=2, help="trials at a time (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="workers per trial (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    spark = (
        SparkSession.builder.master(os.environ.get("SPARK_MASTER") or f"local[{options.parallel * options.slots}]")
        .appName("tuning")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )

    def objective(trial):
        callback = PruneTrial(trial, "val_accuracy")
        runner = MirroredStrategyRunner(
            num_slots=options.slots, use_gpu=False, spark=spark, callbacks=[callback], log_to_driver=False,
            progress=False,
        )  # fmt: skip
        runner.run(
            train,
            epochs=options.epochs,
            learning_rate=trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True),
            units=trial.suggest_int("units", 16, 128, log=True),
        )
        trial.set_user_attr("epochs", len(runner.report.history))
        if callback.pruned:
            raise optuna.TrialPruned
        return max(entry["logs"]["val_accuracy"] for entry in runner.report.history)

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1),
    )
    # The first trial uses the present values, so that the pruner has something to compare bad trials with.
    study.enqueue_trial({"learning_rate": 1e-2, "units": 64})
    # Each trial is a separate Spark job; Optuna runs the trials in threads of this process.
    study.optimize(objective, n_trials=options.trials, n_jobs=options.parallel)
    for trial in study.trials:
        rate, epochs = trial.params["learning_rate"], trial.user_attrs["epochs"]
        print(f"trial {trial.number}: learning rate {rate:.2g}, {epochs} epochs, {trial.state.name.lower()}")
    print(f"best accuracy: {study.best_value:.4f} with {study.best_params}")
    spark.stop()


if __name__ == "__main__":
    main()
