"""Imports the modules that a trainer imports after its fork.

The fork server imports this one: it compiles the library's own modules once, instead of in every trainer (0.4 s of
processor time each). Like TensorFlow, they create neither a device nor a thread when they are imported.
"""

# ruff: noqa: F401
from ...data import dataset, shard
from ...process_group import group
from ...resume import fit_tracker
from ...training import (
    fit_hooks,
    joint_calls,
    keras_api,
    other_strategies,
    patches,
    port_closing,
    private_names,
    progress,
    replica_hooks,
    shard_feeding,
    strategy,
    tf_collectives,
)
from . import main
