"""The doctor's diagnosis as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..redaction import HIDDEN, names_a_secret, redacted
from .findings import Finding


@dataclass
class Diagnosis:
    """Facts about the cluster, and what they mean for a run.

    Attributes:
        version: Version of this library.
        config: The run in question, in words.
        driver: The facts of ``probe.host_facts``, and ``spark``, ``java`` and ``kind``.
        settings: The relevant Spark settings that are set.
        slots: Number of tasks that the cluster can run now; None if unknown.
        executors: Number of registered executors; None if unknown.
        tasks: The facts that each ``probe.probe_task`` reported, by rank.
        findings: The conclusions.
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
    return {key: HIDDEN if names_a_secret(key) else redacted(value) for key, value in settings.items()}
