"""Batch inference: a model as a function of columns."""
