"""The agent's side of a run, in Spark's Python worker, where TensorFlow is never initialised."""
