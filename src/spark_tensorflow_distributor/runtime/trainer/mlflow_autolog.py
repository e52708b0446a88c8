"""Makes ``mlflow.autolog()`` in a training function record a run once, without waiting for other ranks.

All ranks call it, so each would record the run. At the end of ``fit``, MLflow calls ``predict`` to infer the model's
signature, and all ranks would have to take part in this call.
"""

import functools
from typing import Any

from ...training.late_imports import call_after_import

_MODULES = ("mlflow.tensorflow", "mlflow.keras")


def record_once(is_chief: bool) -> None:
    """Adapt ``autolog`` of MLflow's modules for Keras as soon as the training function imports them."""
    call_after_import(_MODULES, functools.partial(adapt, is_chief=is_chief))


def adapt(module: Any, *, is_chief: bool) -> None:
    """Replace ``autolog`` of one module: the chief's does not call ``predict``, and that of other ranks is disabled."""
    original = getattr(module, "autolog", None)
    if original is None:
        return
    changes = {"log_model_signatures": False, "log_input_examples": False} if is_chief else {"disable": True}

    @functools.wraps(original)
    def autolog(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, **changes})

    module.autolog = autolog
