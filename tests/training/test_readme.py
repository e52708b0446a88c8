"""The programs in README.md run exactly as printed there, with the library installed from its wheel."""

import os
import re
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def programs(section):
    """Return the Python blocks of the README's section with this heading."""
    text = (ROOT / "README.md").read_text()
    (part,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """A Python with the wheel and this environment's other packages, which need not be downloaded again."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("clean")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=60)
    python = str(folder / "venv" / "bin" / "python")
    show = "import site; print(site.getsitepackages()[0])"
    packages = Path(subprocess.run([python, "-c", show], capture_output=True, text=True, timeout=60).stdout.strip())
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(packages)
    # Python ignores .pth files in these directories, and one of those makes this source tree importable.
    others = [path for path in sys.path if path in site.getsitepackages() or path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return python


@pytest.mark.parametrize(
    ("section", "output"), [("Quick start", "Run succeeded"), ("DataFrames", "prediction|")], ids=["arrays", "frames"]
)
def test_the_program_of_the_section_runs(section, output, clean_python, tmp_path):
    (program,) = programs(section)
    (tmp_path / "program.py").write_text(program)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PYSPARK_PYTHON": clean_python, "PYSPARK_DRIVER_PYTHON": clean_python}
    where = "import spark_tensorflow_distributor as std; print(std.__file__)"
    found = subprocess.run([clean_python, "-c", where], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert Path(clean_python).parents[1] in Path(found.stdout.strip()).parents, found.stdout + found.stderr
    done = subprocess.run(
        [clean_python, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=560, env=env
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert output in done.stdout
