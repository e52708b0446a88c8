"""The driver's side of a run: knows Spark, never TensorFlow."""
