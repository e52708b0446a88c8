"""The agent's side of a run, in Spark's Python worker. It never initialises TensorFlow."""
