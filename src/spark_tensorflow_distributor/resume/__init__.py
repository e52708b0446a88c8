"""Saves the progress of training, and resumes it after a failure."""
