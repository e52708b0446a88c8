"""The results of those cases of a suite that tests have selected."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from spark_tensorflow_distributor.runtime.spark_settings import COLLECTIVES

from .launch import cases_of, differences, launch

# Keras package, number of workers, engine.
Group: TypeAlias = tuple[str, int, str]

# A group takes several minutes on two cores. By default, therefore, each package has one group; tf_keras, which shares
# everything but its patches with Keras 3, runs every fourth case; and every fourth of the whole programs runs, with
# tf_keras every eighth. With EVERY_GROUP=1 in the environment, everything runs.
GROUPS: set[Group] = {("keras", 3, "sockets"), ("tf_keras", 2, "sockets")}
EVERY_CASE = {"keras": 1, "tf_keras": 4}
EVERY_PROGRAM = {"keras": 4, "tf_keras": 8}
if os.environ.get("EVERY_GROUP"):
    GROUPS |= {("keras", 2, "sockets"), ("tf_keras", 3, "sockets")}
    EVERY_CASE = EVERY_PROGRAM = {"keras": 1, "tf_keras": 1}

# These cases also run on TensorFlow's runtime. They use every kind of collective, in all methods and in custom loops.
ON_TENSORFLOW = (
    "arrays", "auto_shard_off", "batch_normalization_synchronized", "custom_loop", "custom_train_step",
    "dataset_of_unknown_length", "dataset_with_remainder", "embedding", "evaluate", "fewer_rows_than_workers",
    "fit_twice", "gathered_in_a_step", "mixed_bfloat16", "model_checkpoint", "on_batch", "predict_arrays",
    "predict_nested", "run_eagerly", "weighted_metrics",
)  # fmt: skip


class Results:
    """Runs the selected cases of a Keras package on a number of workers when their results are first needed."""

    def __init__(self, suite: str, items: Iterable[Any], folder: Path, pool: ThreadPoolExecutor, spark: Any) -> None:
        self.cases = cases_of(suite)
        self.suite, self.folder, self.pool, self.spark = suite, folder, pool, spark
        parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
        self.chosen = [
            (each["package"], each["name"], each["workers"], each["engine"]) for each in parameters if "package" in each
        ]
        self.singles: dict[str, Any] = {}
        self.groups: dict[tuple[str, int, str], Any] = {}

    def check(self, package: str, name: str, workers: int, engine: str) -> None:
        """Fail unless all workers have the numbers of one process.

        Args:
            package: ``keras`` or ``tf_keras``.
            name: The name of the case.
            workers: The number of workers.
            engine: How collectives travel: ``sockets`` or ``tensorflow``.
        """
        case = self.cases[name]
        if not case.is_supported(package):
            pytest.skip(f"needs Keras {'.'.join(map(str, case.since))}")
        found = self._of(package, workers, engine)[name]
        (single,) = self._of(package, 0)[name]
        assert isinstance(single, dict), f"one process failed: {single}"
        assert len(found) == workers, found
        for rank, wrong in enumerate(differences(case, single, found, workers)):
            assert not wrong, f"rank {rank}: {wrong}"

    def _of(self, package: str, workers: int, engine: str = "") -> dict[str, list[Any]]:
        if package not in self.singles:  # meanwhile, groups may run on the other core
            self.singles[package] = self.pool.submit(self._run, package, 0, "")
        if not workers:
            return self.singles[package].result()
        if (package, workers, engine) not in self.groups:
            self.groups[package, workers, engine] = self._run(package, workers, engine)
        return self.groups[package, workers, engine]

    def _run(self, package: str, workers: int, engine: str) -> dict[str, list[Any]]:
        chosen = {
            name for of, name, *group in self.chosen if of == package and (not workers or group == [workers, engine])
        }
        names = [name for name, case in self.cases.items() if name in chosen and case.is_supported(package)]
        (here := self.folder / f"{package}-{workers}{engine}").mkdir()
        if not workers:
            return launch(package, workers, names, str(here), self.suite)
        self.spark.conf.set(COLLECTIVES, engine)
        try:
            return launch(package, workers, names, str(here), self.suite, spark=self.spark)
        finally:
            self.spark.conf.unset(COLLECTIVES)


def table(
    cases: dict[str, Any], groups: set[Group], every: Mapping[str, int] = EVERY_CASE
) -> list[tuple[str, str, int, str]]:
    """Return the arguments of ``Results.check`` for every n-th case of each package, in each group."""
    arguments = []
    for package, workers, engine in sorted(groups):
        names = [name for name in cases if package in cases[name].packages]
        if engine != "sockets":
            names = [name for name in names if name in ON_TENSORFLOW]
        arguments += [(package, name, workers, engine) for name in names[:: every[package]]]
    return arguments
