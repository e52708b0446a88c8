"""``compare_step``, for training functions. The comparison itself needs TensorFlow, which the driver need not load."""

from __future__ import annotations

from typing import Any

from ..context import get_context
from .step_comparison import StepComparison


def compare_step(
    model: Any, x: Any, y: Any = None, sample_weight: Any = None, *, tolerance: float | None = None
) -> StepComparison:
    """Compare one training step on all workers with the same step in one process; nothing is trained.

    Some programs train differently on several workers without any error: for example, if the loss is a sum over the
    batch or the root of a mean, or if they use ``BatchNormalization`` without ``synchronized=True``. This function
    shows whether a model is one of them. It computes one step twice: first all workers together, each on its part of
    the batch, then each worker alone on the whole batch, for which its memory must suffice. It compares the gradients
    and the logs. Call it in the training function, on all workers, after ``compile`` and before ``fit``::

        print(compare_step(model, x[:256], y[:256]))

    Weights, optimizers, metrics and random generators are left as they were. The steps run eagerly, as with
    ``run_eagerly=True``. Optimizers do not apply the gradients: they would receive those of the whole batch, so if the
    gradients are equal, so are the updates.

    A step that draws other random numbers than those of dropout and noise layers is reported as different. The state of
    ``BatchNormalization`` and other layers is not compared; ``fit`` averages it at the end of each epoch.

    Args:
        model: A compiled model of Keras 3 or tf_keras whose variables exist.
        x: A global batch of inputs, as for ``model.train_on_batch``: arrays or tensors, the same on all workers, with
            at least one row per worker.
        y: The targets; None if the model needs none.
        sample_weight: The weights of the rows; None for none.
        tolerance: The largest relative difference that counts as equal. Sums over the workers' parts are rounded
            differently from sums over a batch; this alone causes relative differences of about 1e-6 in float32 and 1e-2
            in half precision. The default is 1e-3; for models with layers that compute in half precision, and with
            ``gradient_compression``, it is 5e-2.

    Returns:
        The differences; the same result on all workers. With one worker, there are none, and nothing is computed.

    Raises:
        ConfigurationError: The workers have different batches or too few rows, the model is not compiled or has no
            variables yet, the step does not call an optimizer, or the strategy is TensorFlow's own, as with several
            GPUs per task or ``use_custom_strategy``.
        DistributorError: The call is made outside of a training function.
    """
    workers = get_context().world_size
    strategy = getattr(model, "distribute_strategy", None)
    if workers == 1 and getattr(strategy, "num_replicas_in_sync", 1) == 1:
        return StepComparison(1, tolerance or 0.0, {}, {})
    from .compared_steps import compare  # loads TensorFlow

    return compare(model, (x, y, sample_weight), tolerance)
