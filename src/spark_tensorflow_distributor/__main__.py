"""The entry point of ``python -m spark_tensorflow_distributor``, and a file for spark-submit, which runs no modules."""

import os
import sys

if __name__ == "__main__":
    # When this file runs as a script, its folder is first in sys.path, and modules in it would shadow others.
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != os.path.dirname(__file__)]
    from spark_tensorflow_distributor.cli.main import main

    raise SystemExit(main())
