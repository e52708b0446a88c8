"""Train a small convolutional network on scikit-learn's handwritten digits, with two local Spark tasks.

Run it with ``scripts/demo``, or with any Python that has PySpark, TensorFlow and scikit-learn.
"""

import argparse
import os
import sys

# Spark runs its workers with this Python; by default it would use whatever "python3" is in PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

from pyspark.sql import SparkSession

from spark_tensorflow_distributor import MirroredStrategyRunner, get_context


def train(epochs, batch_size):
    """Train and evaluate on every worker; this is an ordinary Keras program."""
    import tensorflow as tf
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8, 1).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)

    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((8, 8, 1)),
            tf.keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            tf.keras.layers.Conv2D(32, 3, activation="relu"),
            tf.keras.layers.MaxPooling2D(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=tf.keras.optimizers.Adam(0.002),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data = (
        tf.data.Dataset.from_tensor_slices((train_x, train_y))
        .repeat()
        .shuffle(len(train_x), seed=1)
        .batch(batch_size)  # the global batch; each worker trains on its part of it
    )
    if get_context().is_chief:
        print(f"training on {len(train_x)} digits with {get_context().world_size} workers")
    model.fit(data, epochs=epochs, steps_per_epoch=len(train_x) // batch_size)

    _, accuracy = model.evaluate(test_x, test_y, batch_size=batch_size)
    return {"test_accuracy": float(accuracy), "parameters": model.count_params()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=2, help="number of workers (default: %(default)s)")
    parser.add_argument("--master", default=os.environ.get("SPARK_MASTER"), help="default: local[SLOTS]")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="global batch size (default: %(default)s)")
    options = parser.parse_args()

    spark = (
        SparkSession.builder.master(options.master or f"local[{options.slots}]")
        .appName("digits")
        .config("spark.ui.showConsoleProgress", "false")  # Spark's bar would overwrite the training's
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    runner = MirroredStrategyRunner(num_slots=options.slots, use_gpu=False, spark=spark)
    result = runner.run(train, epochs=options.epochs, batch_size=options.batch_size)
    print(f"\ntest accuracy: {result['test_accuracy']:.4f} ({result['parameters']} parameters)\n")
    print(runner.report)
    spark.stop()


if __name__ == "__main__":
    main()
