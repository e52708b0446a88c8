"""The child process that trains, with TensorFlow, and without Spark in the data path."""
