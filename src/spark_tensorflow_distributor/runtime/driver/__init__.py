"""The driver's side of a run. It uses Spark, and never TensorFlow."""
