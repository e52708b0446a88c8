"""What a checkpoint holds of state that differs between ranks."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

from spark_tensorflow_distributor.resume import model_state
from spark_tensorflow_distributor.resume.model_state import ModelState

STATE_BYTES = 2 * 4 * 4  # two variables of four float32 values each


def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])


def saved_state(model):
    """Return the values of the moving mean while it is saved and afterwards, and what is saved of this rank's own."""
    rank = model.distribute_strategy.collectives.rank
    mean, variance = model.non_trainable_variables
    mean.assign(np.full(4, rank))
    variance.assign(np.full(4, 2 * rank))
    saved, warnings = [], []
    for _ in range(2):  # the second fit without a warning
        with ModelState(model, is_chief=rank == 0, warn=warnings.append).averaged_layers() as own:
            saved.append((mean.numpy().tolist(), [value.tolist() for value in own.values()]))
    return saved, mean.numpy().tolist(), warnings


@pytest.mark.parametrize("excess", [0, 1])
def test_each_ranks_state_is_saved_up_to_a_limit(monkeypatch, excess):
    monkeypatch.setattr(model_state, "_MAX_LAYER_BYTES", 2 * STATE_BYTES - excess)
    for rank, (saved, afterwards, warnings) in enumerate(on_replicas(2, build, saved_state)):
        own = [] if excess else [[rank] * 4, [2 * rank] * 4]
        assert saved == [([0.5] * 4, own)] * 2
        assert afterwards == [rank] * 4
        assert len(warnings) == (excess if rank == 0 else 0)
        assert all("checkpoints hold the average" in text for text in warnings)
