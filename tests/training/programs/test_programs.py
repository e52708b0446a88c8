"""Programs as people write them compute the numbers of one process on two and three workers."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from conformance.launch import cases_of, differences
from conformance.results import EVERY_PROGRAM, GROUPS, Results, table
from conformance.table import Case

PROGRAMS = cases_of("programs")


@pytest.fixture(scope="module")
def results(request, spark, tmp_path_factory):
    """Return the results of the selected programs; the first test of a group runs them all."""
    folder = tmp_path_factory.mktemp("results")  # pytest's factory is not thread-safe
    items = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor() as pool:
        yield Results("programs", items, folder, pool, spark)


@pytest.mark.parametrize(("package", "name", "workers", "engine"), table(PROGRAMS, GROUPS, EVERY_PROGRAM))
@pytest.mark.timeout(2400)  # the first test of a group runs all programs
def test_workers_have_the_numbers_of_one_process(results, package, name, workers, engine):
    results.check(package, name, workers, engine)


@pytest.mark.parametrize(
    ("ranks", "wrong"),
    [
        ([{"loss": 2.0}, {"loss": 2.0}], [False, False]),
        ([{"loss": 2.0}, {"loss": 2.1}], [False, True]),
        ([{"loss": np.nan}, {"loss": np.nan}], [True, False]),
        ([{"loss": [2.0]}, {"loss": [2.0]}], [True, False]),
        ([{"loss": 2.0}, "Traceback"], [False, True]),
    ],
)
def test_ranks_agree_even_if_they_cannot_have_the_numbers_of_one_process(ranks, wrong):
    case = Case("", lambda keras: {}, ("keras",), 1e-3, 1e-4, (3, 10), None, unequal="random layers")
    assert [bool(each) for each in differences(case, {"loss": 1.0}, ranks, 2)] == wrong


def test_the_programs_are_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "keras.md").read_text()
    assert [name for name in PROGRAMS if f"| `{name}` |" not in text] == []
