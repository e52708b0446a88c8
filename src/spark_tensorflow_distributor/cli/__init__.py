"""The command line: ``python -m spark_tensorflow_distributor``."""
