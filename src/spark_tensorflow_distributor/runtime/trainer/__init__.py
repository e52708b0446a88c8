"""The child process that trains: TensorFlow, and no Spark in the data path."""
