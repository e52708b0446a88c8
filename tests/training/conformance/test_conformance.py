"""Keras on two and three workers gives the numbers of one process at the same global batch: the whole table."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .launch import difference, launch
from .table import CASES

PACKAGES = ["keras", "tf_keras"]


@pytest.fixture(scope="module")
def results(request, spark, tmp_path_factory):
    """Return the results of the selected cases of a package in a group of some size; the first test runs them all."""
    singles, groups = {}, {}
    folder = tmp_path_factory.mktemp("results")  # pytest's factory is not thread-safe
    chosen = {
        (item.callspec.params["package"], item.callspec.params["name"])
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }

    def run(package, workers):
        names = [name for name, case in CASES.items() if (package, name) in chosen and case.is_supported(package)]
        (here := folder / f"{package}-{workers}").mkdir()
        return launch(package, workers, names, str(here), spark=spark)

    def results(package, workers):
        if package not in singles:  # a single process leaves a core to the groups
            singles[package] = pool.submit(run, package, 0)
        if not workers:
            return singles[package].result()
        if (package, workers) not in groups:
            groups[package, workers] = run(package, workers)
        return groups[package, workers]

    with ThreadPoolExecutor() as pool:
        yield results


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in PACKAGES for name in CASES if package in CASES[name].packages]
)
@pytest.mark.timeout(1500)  # the first test of a group runs all cases
def test_workers_have_the_numbers_of_one_process(results, package, name, workers):
    if not CASES[name].is_supported(package):
        pytest.skip(f"needs Keras {'.'.join(map(str, CASES[name].since))}")
    found = results(package, workers)[name]
    (single,) = results(package, 0)[name]
    assert isinstance(single, dict), f"one process failed: {single}"
    assert len(found) == workers, found
    for rank, each in enumerate(found):
        assert not (wrong := difference(CASES[name], single, each, workers)), f"rank {rank}: {wrong}"


def test_the_table_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "keras.md").read_text()
    assert [name for name in CASES if f"| `{name}` |" not in text] == []
