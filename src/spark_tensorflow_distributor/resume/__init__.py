"""Saving a training, and resuming it after a failure."""
