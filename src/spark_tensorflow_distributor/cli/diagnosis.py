"""What the doctor found, as data."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .findings import Finding

_SECRETS = re.compile("password|secret|token|credential|key$", re.IGNORECASE)


@dataclass
class Diagnosis:
    """What the doctor found.

    Attributes:
        version: Of this library.
        config: The run in question, in words.
        driver: See ``probe.host_facts``; also ``spark``, ``java`` and ``kind``.
        settings: Spark's settings that matter, those that are set.
        slots: How many tasks the cluster can run now; None if unknown.
        executors: How many are registered; None if unknown.
        tasks: What ``probe.probe_task`` reported, by rank.
        findings: What it all means.
    """

    version: str
    config: str
    driver: dict[str, Any]
    settings: dict[str, str] = field(default_factory=dict)
    slots: int | None = None
    executors: int | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def would_start(self) -> bool:
        return all(finding.status != "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "settings": without_secrets(self.settings), "would_start": self.would_start}


def without_secrets(settings: Mapping[str, str]) -> dict[str, str]:
    """Return Spark's settings with "..." in place of the values that may be secret."""
    return {key: "..." if _SECRETS.search(key) else value for key, value in settings.items()}
