"""The programs in README.md run as they are printed there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def programs(section):
    """Return the Python blocks of the README's section with this heading."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("section", "output"), [("Quick start", "Run succeeded"), ("DataFrames", "prediction|")], ids=["arrays", "frames"]
)
def test_the_program_of_the_section_runs(section, output, tmp_path):
    (program,) = programs(section)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert output in done.stdout
