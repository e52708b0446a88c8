"""Runs a function on a group of workers: the driver, the agents, the trainers and their shared code."""
