"""Shared code of the tests' driver programs."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
sys.path.insert(0, str(Path(__file__).parent.parent))


def session(conf=None):
    """Return a session with the settings in argv, and with those in ``conf``."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    for key, value in {**json.loads(sys.argv[1]), **(conf or {})}.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def print_result(result):
    print("RESULT " + json.dumps(result), flush=True)
