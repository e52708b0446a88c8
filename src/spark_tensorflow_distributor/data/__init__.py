"""The rows of a DataFrame, on their way from Spark to ``tf.data``."""
