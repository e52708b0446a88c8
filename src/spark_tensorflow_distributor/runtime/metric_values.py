"""Checks the values that a training function passes to ``get_context().report``."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError
from ..formatting import type_name, with_article


def reported_entry(step: int, metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the entry for the run's history.

    Args:
        step: The step of the custom loop.
        metrics: Numbers by name.
        seconds: Time since the previous report.

    Raises:
        ConfigurationError: The step or a metric is not a number.
    """
    logs = {name: _number(name, value) for name, value in metrics.items()}
    return {"fit": None, "epoch": int(_number("step", step)), "logs": logs, "seconds": seconds}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"get_context().report() got {name}={value!r}, {with_article(type_name(value))}; it must be a number. "
            "Report a vector as several metrics, and text with print()."
        ) from None
