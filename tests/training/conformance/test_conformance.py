"""The whole table: Keras on two and three workers computes the numbers of one process at the same global batch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .launch import cases_of
from .results import GROUPS, Results, table

CASES = cases_of("conformance")


@pytest.fixture(scope="module")
def results(request, spark, tmp_path_factory):
    """Return the results of the selected cases; the first test of a group runs them all."""
    folder = tmp_path_factory.mktemp("results")  # pytest's factory is not thread-safe
    items = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor() as pool:
        yield Results("conformance", items, folder, pool, spark)


@pytest.mark.parametrize(("package", "name", "workers", "engine"), table(CASES, GROUPS | {("keras", 2, "tensorflow")}))
@pytest.mark.timeout(2400)  # the first test of a group runs all cases
def test_workers_have_the_numbers_of_one_process(results, package, name, workers, engine):
    results.check(package, name, workers, engine)


def test_the_table_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "keras.md").read_text()
    assert [name for name in CASES if f"| `{name}` |" not in text] == []
