"""Warns users of ``mlflow.autolog()`` if it records nothing."""

import sys

from .callbacks import CallbackList
from .loggers import run_log as _log

_has_warned = False


def warn_of_autolog(callbacks: CallbackList) -> None:
    """Warn once if ``mlflow.autolog()`` is active on the driver, where nothing trains, and no callback records runs."""
    global _has_warned
    utils = sys.modules.get("mlflow.utils.autologging_utils")
    integrations = getattr(utils, "AUTOLOGGING_INTEGRATIONS", {})
    is_on = any(integrations.get(name, {}).get("disable") is False for name in ("mlflow", "tensorflow", "keras"))
    if is_on and not _has_warned and "MLflowCallback" not in callbacks.names:
        _has_warned = True
        _log.warning(
            "mlflow.autolog() on the driver does not see the training, which happens on the workers. To record runs in "
            "MLflow, pass callbacks=[MLflowCallback()], or call mlflow.autolog() in the training function."
        )
