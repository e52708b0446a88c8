"""The private names of TensorFlow, Keras and PySpark, in the releases that are installed."""

import json
import subprocess
import sys
from pathlib import Path

from spark_tensorflow_distributor.training.private_names import PRIVATE_MODULES

PROGRAM = Path(__file__).parents[1] / "programs" / "private_names_run.py"
# The methods that pyspark.ml intends subclasses to override, and the one that makes room for what a writer saves.
OF_SPARK = {"_fit", "_transform", "_handleOverwrite"}


def test_the_table_fits_the_release_and_has_the_methods_that_are_overridden():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["warnings"] == {"tensorflow": None, "keras": None, "tf_keras": None}
    assert found["made up"] == []
    assert {"_call_for_each_replica", *OF_SPARK} <= set(found["overridden"])
    known = {part for entry in PRIVATE_MODULES for name in entry.names for part in name.split(".")}
    assert set(found["overridden"]) - known - OF_SPARK == set()
