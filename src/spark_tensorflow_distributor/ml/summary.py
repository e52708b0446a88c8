"""What is known about a training after it has ended. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.driver.report import RunReport


@dataclass(frozen=True)
class TrainingSummary:
    """The summary of a training, ``model.summary``.

    Attributes:
        history: The metrics of each epoch, by name, as in Keras' ``History.history``.
        epochs: One dict for each epoch of every ``fit``, as in ``RunReport.history``.
        report: The :class:`~spark_tensorflow_distributor.RunReport` of the run; None for a model that was loaded.
    """

    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    report: "RunReport | None" = None

    @property
    def totalIterations(self) -> int:
        """The number of epochs of the last ``fit``."""
        return max(map(len, self.history.values()), default=0)

    @property
    def objectiveHistory(self) -> list[float]:
        """The training loss of each epoch."""
        return list(self.history.get("loss", ()))


def history_by_metric(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the metrics of the last ``fit`` among the entries of ``RunReport.history``, by name.

    Args:
        entries: The entries, in order.
    """
    fits = [entry["fit"] for entry in entries if entry["fit"] is not None]
    found: dict[str, list[float]] = {}
    for entry in entries:
        if fits and entry["fit"] == fits[-1]:
            for name, value in entry["logs"].items():
                found.setdefault(name, []).append(float(value))
    return found
