"""A diagnosis as text, for terminals and bug reports. Pure."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..formatting import gibibytes
from .diagnosis import Diagnosis, without_secrets

_WIDTH = 110


def report_text(found: Diagnosis) -> str:
    """Return the whole report."""
    return "\n".join(_lines(found))


def _lines(found: Diagnosis) -> Iterator[str]:
    driver = found.driver
    yield f"spark_tensorflow_distributor {found.version}, doctor"
    yield ""
    yield "Driver"
    java = f", Java {driver['java']}" if driver["java"] else ""
    yield f"  Spark        {driver['spark'] or 'not installed'} ({driver['kind']}){java}"
    yield f"  Python       {driver['python']}, {driver['executable']}"
    yield f"  packages     {_versions(driver['packages'])}"
    yield f"  system       {driver['system']}, {_resources(driver)}"
    yield ""
    yield "Spark settings"
    for key, value in without_secrets(found.settings).items():
        yield f"  {key}={value}"
    if not found.settings:
        yield "  no relevant settings are set"
    if found.tasks:
        yield ""
        yield "Executors"
        yield from _executors(found.tasks)
    yield ""
    yield "Checks"
    for finding in found.findings:
        yield from _wrapped(f"{finding.status:8} ", finding.text)
        if finding.change:
            yield from _wrapped(" " * 9, f"-> {finding.change}")
    yield ""
    problems = sum(finding.status == "problem" for finding in found.findings)
    verdict = "would start" if found.would_start else f"would not start: {problems} problem(s), see above"
    yield f"A run with {found.config} {verdict}."


def _wrapped(label: str, text: str) -> Iterator[str]:
    indent = " " * (2 + len(label))
    for number, paragraph in enumerate(text.splitlines()):
        start = f"  {label}" if number == 0 else indent
        yield from textwrap.wrap(
            paragraph, _WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def _versions(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items()) or "none"


def _resources(facts: Mapping[str, Any]) -> str:
    memory = "unknown" if facts["memory"] is None else gibibytes(facts["memory"])
    return f"{facts['cores']} cores, {memory} of memory free"


def _executors(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    hosts: dict[str, list[Mapping[str, Any]]] = {}
    for task in tasks:
        hosts.setdefault(task["host"], []).append(task)
    for host, of_host in hosts.items():
        first = of_host[0]
        disk, found = first["disk"], first.get("tensorflow", {})
        yield f"  {host}, rank(s) {', '.join(str(task['rank']) for task in of_host)}, {first['cpus']} CPU(s) per task"
        yield f"    Python     {first['python']}, {first['executable']}"
        yield f"    packages   {_versions(first['packages'])}"
        yield f"    system     {first['system']}, {_resources(first)}, {gibibytes(disk['free'])} in {disk['path']}"
        if "version" in found:
            seen = ", ".join(found["gpus"]) or "none"
            cuda = f", CUDA {found['cuda']}" if found["cuda"] else ""
            yield f"    TensorFlow imported in {found['seconds']} s{cuda}; visible GPUs: {seen}"
        for task in of_host:
            for name, addresses in task["resources"].items():
                yield f"    rank {task['rank']}     {name} {', '.join(addresses)}"
