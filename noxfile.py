"""The tests in a table of environments: ``scripts/test --versions [NAME ...]``, or nox itself.

The table is a covering set: each version that is supported occurs at least once, each PySpark with a TensorFlow and a
Keras of its time. The first and the last row, the corners, run all tests; the others run the core.
"""

from dataclasses import dataclass, field

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

# What needs neither root nor several minutes, and covers each interface to Spark, TensorFlow and Keras.
CORE = (
    "tests/unit",
    "tests/spark/test_run.py",
    "tests/spark/test_preflight.py",
    "tests/spark/test_connect.py",
    "tests/spark/test_ml.py",
    "tests/training/test_runner_training.py",
    "tests/training/test_data_runs.py",
    "tests/training/test_predict.py",
    "tests/training/test_patches.py",
    "tests/training/test_private_names.py",
    "tests/training/test_ml_estimators.py",
    "tests/training/test_ml_groups.py",
)
ALL = ("tests/unit", "tests/spark", "tests/training", "tests/cluster")


@dataclass(frozen=True)
class Environment:
    """A row of the table.

    Attributes:
        python: Version of Python.
        pyspark, tensorflow, keras, pandas, pyarrow: Their versions, as far as pip's ``==`` takes them.
        others: Further constraints.
        tests: What runs.
    """

    python: str
    pyspark: str
    tensorflow: str
    keras: str
    pandas: str
    pyarrow: str
    others: tuple[str, ...] = ()
    tests: tuple[str, ...] = field(default=CORE)

    def constraints(self) -> str:
        lines = [
            f"pyspark=={self.pyspark}.*",
            f"tensorflow=={self.tensorflow}.*",
            f"tensorflow-cpu=={self.tensorflow}.*",
            f"keras=={self.keras}.*",
            f"pandas=={self.pandas}.*",
            f"pyarrow=={self.pyarrow}.*",
            *self.others,
        ]
        return "\n".join(lines) + "\n"


# TensorFlow 2.16 and 2.17 need NumPy 1, for which pyarrow 17 was the last to be built.
_NUMPY_1 = ("numpy<2", "cryptography==44.*")
ENVIRONMENTS = {
    "oldest": Environment("3.10", "3.5", "2.16", "3.10", "2.1", "17", _NUMPY_1, ALL),
    "spark-3.5": Environment("3.11", "3.5", "2.17", "3.11", "2.2", "17", _NUMPY_1),
    "spark-4.0": Environment("3.11", "4.0", "2.18", "3.12", "2.2", "18"),
    # From PySpark 4.1 on, Spark Connect needs protobuf 6, which TensorFlow takes from 2.20 on.
    "tensorflow-2.19": Environment("3.12", "4.0", "2.19", "3.13", "2.2", "20"),
    "spark-4.1": Environment("3.12", "4.1", "2.20", "3.13", "2.3", "21"),
    "spark-4.2": Environment("3.12", "4.2", "2.20", "3.14", "2.3", "22"),
    "newest": Environment("3.13", "4.3", "2.21", "3.15", "2.3", "26", (), ALL),
}


def _session(name: str, environment: Environment) -> None:
    @nox.session(name=name, python=environment.python)
    def run(session: nox.Session) -> None:
        folder = session.create_tmp()
        constraints = f"{folder}/constraints.txt"
        with open(constraints, "w", encoding="utf-8") as file:
            file.write(environment.constraints())
        session.install("--quiet", "-e", ".[dev]", "-c", constraints)
        # tf_keras requires `tensorflow`, whose files would overwrite those of tensorflow-cpu.
        session.install("--quiet", "--no-deps", f"tf_keras=={environment.tensorflow}.*")
        python = f"{session.virtualenv.bin}/python"
        env = {"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python}
        session.run("python", "-m", "pytest", *(session.posargs or environment.tests), env=env)


for _name, _environment in ENVIRONMENTS.items():
    _session(_name, _environment)
