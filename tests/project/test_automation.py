"""Files that only other services read: their schemas, and that what they name exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCHEMAS = [
    ("vendor.github-workflows", ".github/workflows/*.yml"),
    ("vendor.dependabot", ".github/dependabot.yml"),
    ("vendor.compose-spec", "docker/compose.yaml"),
    ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/[bf]*.yml"),
    ("vendor.citation-file-format", "CITATION.cff"),
]


@pytest.mark.parametrize(("schema", "pattern"), SCHEMAS)
def test_files_follow_their_schemas(schema, pattern):
    pytest.importorskip("check_jsonschema")
    files = [str(path) for path in sorted(ROOT.glob(pattern))]
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("docker/*Dockerfile")), ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_that_workflows_run_exist():
    text = "".join(path.read_text() for path in ROOT.glob(".github/workflows/*.yml"))
    scripts = set(re.findall(r"\bscripts/\w+", text))
    assert scripts >= {"scripts/lint", "scripts/test", "scripts/docs", "scripts/release"}
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o100, script


def test_environments_of_the_workflow_are_those_of_the_table():
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    table = (ROOT / "noxfile.py").read_text()
    named = dict(re.findall(r'\{ environment: ([\w.-]+), python: "([\d.]+)" \}', workflow))
    assert named == dict(re.findall(r'^    "([\w.-]+)": Environment\(\s*"([\d.]+)"', table, re.MULTILINE))
