"""A training that continues after a failure: checkpoints, and the state of fit."""
