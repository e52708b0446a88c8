"""Runs the cases of a suite in one process, or on the workers of a run.

To run some of them: ``python -m conformance.launch PACKAGE WORKERS [CASE ...]`` in ``tests/training``, and in the same
way ``python -m programs.launch PACKAGE WORKERS [PROGRAM ...]``.
"""

import gc
import importlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .table import CASES, Case

GROUPS = ("data", "batches", "models", "optimizers", "compile", "calls", "callbacks")
for group in GROUPS:
    importlib.import_module(f"{__package__}.cases_{group}")

_HERE = Path(__file__).parent.parent
_SINGLE = "import sys; sys.path.insert(0, {path!r}); from conformance import launch; launch.run_here(*{arguments!r})"


def cases_of(suite: str) -> dict[str, Case]:
    """Return the cases of a suite, by name."""
    return CASES if suite == "conformance" else importlib.import_module(f"{suite}.table").load()


def launch(
    package: str, workers: int, names: Iterable[str], folder: str, suite: str = "conformance", **runner: Any
) -> dict[str, list[Any]]:
    """Return the results of cases by name and rank; the result of a case that raised is its traceback, a string.

    Args:
        package: ``keras`` or ``tf_keras``.
        workers: Number of workers; 0 means one process without Spark and without the library, for comparison.
        names: The names of the cases.
        folder: An empty folder for results and for the files of cases.
        suite: ``conformance`` or ``programs``.
        runner: Additional arguments for the runner.
    """
    env = {"TF_USE_LEGACY_KERAS": "1" if package == "tf_keras" else "0", "TF_CPP_MIN_LOG_LEVEL": "2"}
    waiting, results = list(names), {}
    while waiting:
        error = _run((package, waiting, folder, workers, suite), env, runner)
        for name in waiting.copy():
            files = sorted(Path(folder).glob(f"{name}.*.pickle"))
            found = [pickle.loads(file.read_bytes()) for file in files]
            if not found and not error:
                break  # an earlier case raised, so the group is unusable
            results[name] = found or [error]
            waiting.remove(name)
            if not found or not all(isinstance(each, dict) for each in found):
                error = ""  # this case's traceback explains it
    return results


def _run(arguments: tuple[str, list[str], str, int, str], env: dict[str, str], runner: Any) -> str:
    if workers := arguments[3]:
        from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner

        path = str(_HERE)

        def train() -> None:
            import sys

            sys.path.insert(0, path)
            from conformance import launch

            launch.run_here(*arguments)

        settings = {"stall_timeout": 90, **runner}
        try:
            MirroredStrategyRunner(num_slots=workers, use_gpu=False, env=env, progress=False, **settings).run(train)
        except DistributorError as error:
            return str(error)
    else:
        code = _SINGLE.format(path=str(_HERE), arguments=arguments)
        env = {**os.environ, **env, "CUDA_VISIBLE_DEVICES": "-1"}
        subprocess.run([sys.executable, "-c", code], env=env, check=True, stdin=subprocess.DEVNULL)
    return ""


def run_here(package: str, names: list[str], folder: str, workers: int, suite: str) -> None:
    """Run cases in a worker, and write the result of each to a file."""
    import tensorflow as tf

    rank = 0
    if workers:
        from spark_tensorflow_distributor import get_context

        rank = get_context().rank
    keras = tf.keras
    assert keras.Model.__module__.split(".")[0] == package
    gc.freeze()  # lets clear_session, which collects garbage after each case, skip imported objects
    for name in names:
        try:
            result: Any = run_case(name, folder, workers, suite)
        except Exception:
            result = traceback.format_exc()
        Path(folder, f"{name}.{rank}.pickle").write_bytes(pickle.dumps(result))
        if not isinstance(result, dict):
            return
        keras.backend.clear_session()
        gc.freeze()  # and what this case has left
        assert tf.distribute.get_strategy().num_replicas_in_sync == max(workers, 1)


def run_case(name: str, folder: str, workers: int, suite: str = "conformance") -> dict[str, Any]:
    """Run a case in a worker, within the strategy's scope."""
    import tensorflow as tf

    keras, case = tf.keras, cases_of(suite)[name]
    os.environ["CONFORMANCE_FOLDER"] = os.path.join(folder, name)
    os.makedirs(os.environ["CONFORMANCE_FOLDER"], exist_ok=True)
    keras.utils.set_random_seed(7)
    result = case.run(keras)
    if not workers and case.alone is not None:
        for each in (2, 3):
            keras.utils.set_random_seed(7)
            result = {**result, f"alone {each}": case.alone(keras, each)}
    return result


def difference(case: Case, single: dict[str, Any], found: Any, workers: int) -> str:
    """Describe how a result differs from one process's result; return "" if it does not."""
    if not isinstance(found, dict):
        return f"it raised:\n{found}"
    expected = single.get(f"alone {workers}", {k: v for k, v in single.items() if not k.startswith("alone")})
    if found.keys() != expected.keys():
        return f"it has {sorted(found)}, one process has {sorted(expected)}"
    wrong = []
    for name, value in expected.items():
        if np.shape(found[name]) != np.shape(value):
            wrong.append(f"{name} has the shape {np.shape(found[name])}, not {np.shape(value)}")
        elif not np.allclose(found[name], value, rtol=case.rtol, atol=case.atol, equal_nan=True):
            apart = np.abs(np.asarray(found[name], "float64") - np.asarray(value, "float64"))
            wrong.append(f"{name} is {np.nanmax(apart):.3g} apart: {_some(found[name])}, not {_some(value)}")
    return "; ".join(wrong)


def differences(case: Case, single: dict[str, Any], found: list[Any], workers: int) -> list[str]:
    """Describe how the results of the ranks differ from one process's result.

    A case that cannot have the numbers of one process must have finite numbers, the same on all ranks.
    """
    if case.unequal and isinstance(found[0], dict):
        finite = all(np.isfinite(value).all() for value in found[0].values())
        wrong = "" if finite else "it has values that are not finite"
        shapes = [{name: np.shape(value) for name, value in each.items()} for each in (single, found[0])]
        if shapes[0] != shapes[1]:
            wrong = f"it has {shapes[1]}, one process has {shapes[0]}"
        return [wrong, *(difference(case, found[0], each, workers) for each in found[1:])]
    return [difference(case, single, each, workers) for each in found]


def _some(value: Any) -> str:
    return np.array2string(np.ravel(value)[:4], precision=5)


def _session(workers: int) -> Any:
    from pyspark.sql import SparkSession

    return SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false").getOrCreate()


def main(suite: str = "conformance") -> None:
    """Run the command line."""
    package, workers, *names = sys.argv[1:]
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    cases = cases_of(suite)
    names = names or [name for name, case in cases.items() if package in case.packages]
    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as together:
        singles = launch(package, 0, names, alone, suite)
        groups = launch(package, int(workers), names, together, suite, spark=_session(int(workers)))
        right = 0
        for name in names:
            (single,) = singles[name] or ["nothing"]
            if not isinstance(single, dict):
                print(f"{name}: one process failed:\n{single}")
                continue
            found = differences(cases[name], single, groups[name], int(workers))
            if any(found) or len(found) != int(workers):
                last = [text.strip().splitlines()[-1][:700] for text in found if text]
                if len(names) < 4:
                    last = found
                print(f"{name}: WRONG: {' | '.join(dict.fromkeys(last)) or json.dumps(len(found))}")
            else:
                right += 1
        print(f"{right} of {len(names)} are correct")


if __name__ == "__main__":
    main()
