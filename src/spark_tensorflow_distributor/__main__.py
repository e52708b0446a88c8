"""``python -m spark_tensorflow_distributor``, and a file for spark-submit, which runs no modules."""

import os
import sys

if __name__ == "__main__":
    # As a script, this file's folder would come first, and its modules would be taken for others of the same names.
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != os.path.dirname(__file__)]
    from spark_tensorflow_distributor.cli.main import main

    raise SystemExit(main())
