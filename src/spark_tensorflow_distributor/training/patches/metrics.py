"""The variables of metrics."""

import functools
from collections.abc import Callable
from typing import Any

from ..keras_api import defining_class


def metric_variables(tf: Any, keras: Any) -> bool:
    """Lets metrics add up what their worker saw, and sum that over the workers when read, as Keras 3.10 does.

    Keras 3.7 to 3.9 sum the running totals in every step, which counts early steps again and again. In 3.5 and 3.6
    each worker has the metrics of its own part, so that an EarlyStopping may stop some workers and not the others.
    """
    asked = set()  # what Keras itself asks for

    def on_read(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        asked.add(kwargs.get("synchronization"))
        kwargs["synchronization"] = tf.VariableSynchronization.ON_READ
        if getattr(kwargs.get("aggregation"), "name", "NONE") == "NONE":
            kwargs["aggregation"] = tf.VariableAggregation.SUM
        return next_creator(**kwargs)

    with tf.Graph().as_default(), tf.variable_creator_scope(on_read):
        keras.metrics.Sum()
    if asked == {tf.VariableSynchronization.ON_READ}:
        return False
    owner = defining_class(keras.metrics.Metric, "add_variable")
    original = owner.add_variable

    @functools.wraps(original)
    def add_variable(*args: Any, **kwargs: Any) -> Any:
        with tf.variable_creator_scope(on_read):
            variable = original(*args, **kwargs)
        if getattr(variable, "_value", variable) is None:  # in a symbolic build, after which Keras calls for the value
            initialize = variable._deferred_initialize

            def deferred_initialize() -> None:
                del variable._deferred_initialize
                with tf.variable_creator_scope(on_read):
                    initialize()

            variable._deferred_initialize = deferred_initialize
        return variable

    owner.add_variable = add_variable
    return True
