"""A DataFrame's rows, from Spark to ``tf.data``."""
