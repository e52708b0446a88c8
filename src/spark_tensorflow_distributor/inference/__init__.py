"""Batch inference: applies a model to columns of a DataFrame."""
