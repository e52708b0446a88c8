"""Saves training, and resumes it after a failure."""
