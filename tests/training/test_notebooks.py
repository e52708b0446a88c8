"""The example notebooks run as they are, and have been saved with their outputs."""

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "examples" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def kernel_of_this_environment(monkeypatch, tmp_path):
    """A kernel with this interpreter and this package, no matter which kernels are installed."""
    from ipykernel.kernelspec import write_kernel_spec

    source = str(Path(__file__).parent.parent.parent / "src")
    folder = tmp_path / "kernels" / "python3"
    write_kernel_spec(str(folder))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    return tmp_path


def outputs_of(book):
    return [output for cell in book.cells for output in cell.get("outputs", [])]


@pytest.mark.timeout(1000)  # minutes on a busy machine
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel_of_this_environment):
    saved = nbformat.read(path, as_version=4)
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(kernel_of_this_environment)}}
    nbclient.NotebookClient(book, timeout=400, resources=resources).execute()  # raises if a cell fails
    for each in (saved, book):
        pages = [output.data["text/html"] for output in outputs_of(each) if "text/html" in output.get("data", {})]
        reports = [page for page in pages if 'class="stfd"' in page]
        assert bool(reports) == (path.stem != "many-models")  # which trains without a run
        assert all("<svg" in page and "<script" not in page for page in reports)
    assert [cell.source for cell in saved.cells if cell.cell_type == "code" and not cell.execution_count] == []


def test_all_notebooks_are_found():
    assert [path.stem for path in NOTEBOOKS] == ["dataframes", "faults", "many-models", "pipelines", "start", "tuning"]
