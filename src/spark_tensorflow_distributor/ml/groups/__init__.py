"""One Keras model for each group of rows, each trained within one Spark task."""
