"""Keras over two and three workers has the numbers of one process, at the same global batch: the whole table."""

from pathlib import Path

import pytest

from .launch import difference, launch
from .table import CASES, since

PACKAGES = ["keras", "tf_keras"]


@pytest.fixture(scope="module")
def results(spark, tmp_path_factory):
    """What all cases of a package came to in a group of some size; run once, when the first test asks."""
    known = {}

    def results(package, workers):
        if (package, workers) not in known:
            names = [name for name, case in CASES.items() if package in case.packages and since(case, package)]
            folder = str(tmp_path_factory.mktemp(f"{package}-{workers}"))
            known[package, workers] = launch(package, workers, names, folder, spark=spark)
        return known[package, workers]

    return results


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in PACKAGES for name in CASES if package in CASES[name].packages]
)
@pytest.mark.timeout(1500)  # the first one runs all of them
def test_workers_have_the_numbers_of_one_process(results, package, name, workers):
    if not since(CASES[name], package):
        pytest.skip(f"this release of {package} does not have it")
    (single,) = results(package, 0)[name]
    assert isinstance(single, dict), f"one process cannot do it: {single}"
    found = results(package, workers)[name]
    assert len(found) == workers, found
    for rank, each in enumerate(found):
        assert not (wrong := difference(CASES[name], single, each, workers)), f"rank {rank}: {wrong}"


def test_the_table_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "keras.md").read_text()
    assert [name for name in CASES if f"| `{name}` |" not in text] == []
