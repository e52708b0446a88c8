"""Patches for how a step is executed."""

import functools
from types import ModuleType
from typing import Any

from ..private_names import KERAS_TRAINER
from ..replica import replica_strategy


def jit_compile(keras: ModuleType) -> None:
    """Turn XLA off for training and evaluation on CPUs, with a message: collectives cannot be compiled there."""
    model = KERAS_TRAINER.load().TensorFlowTrainer
    make_function = model._make_function

    @functools.wraps(make_function)
    def without_xla(self: Any, *args: Any, **kwargs: Any) -> Any:
        strategy = replica_strategy(self.distribute_strategy)
        if not self.jit_compile or strategy is None or "GPU" in strategy.extended.worker_devices[0].upper():
            return make_function(self, *args, **kwargs)
        if strategy.collectives.rank == 0:
            print(
                "jit_compile=True is ignored for fit and evaluate: TensorFlow cannot compile the collectives of "
                "several workers on CPUs. The numbers are the same.",
                flush=True,
            )
        self.jit_compile = False
        try:
            return make_function(self, *args, **kwargs)
        finally:
            self.jit_compile = True

    model._make_function = without_xla
