"""Stands in for a Python without TensorFlow."""

raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
