"""The loggers that docs/tracking.md documents, whose names are public; all others have the names of their modules."""

import logging

# The course of a run.
run_log = logging.getLogger("spark_tensorflow_distributor.run")
# The workers' output and warnings, with ``log_to_driver="logging"``.
worker_log = logging.getLogger("spark_tensorflow_distributor.workers")
