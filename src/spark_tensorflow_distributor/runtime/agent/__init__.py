"""The side that runs in Spark's Python worker: meets its peers, starts and watches the trainer; no TensorFlow."""
