"""Each patch is needed: without it, a case of the table fails. If one is not, upstream has fixed the fault."""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from conformance.launch import difference, run_case
from conformance.table import CASES
from mwms import GroupFailed, run_group

from spark_tensorflow_distributor.training.patches import PATCHES, TF_KERAS_PATCHES

# Only makes training faster.
WITHOUT_A_CASE = {"unread_logs"}
# Each patch, and a case that needs it.
NEEDED = {
    "symbolic_build": "generator",
    "reduce_per_replica": "arrays",
    "batch_fraction": "arrays",
    "gradients": "clip_global_norm",
    "global_batches": "sequence",
    "shuffled_arrays": "arrays_shuffled_without_a_seed",
    "dropout": "dropout",
    "noise": "noise",
    "steps_per_execution": "steps_per_execution",
    "jit_compile": "jit_compile",
    "moving_statistics": "batch_normalization",
    "saved_models": "save_on_the_chief",
    "callbacks": "tensorboard",
}
NEEDED_BY_TF_KERAS = {
    "batch_fraction": "arrays",
    "global_batches": "arrays",
    "step_logs": "on_batch",
    "shuffled_arrays": "arrays_shuffled_without_a_seed",
    "dropout": "dropout",
    "noise": "noise",
    "moving_statistics": "batch_normalization",
    "saved_models": "save_and_load",
    "callbacks": "csv_logger",
}


def test_every_patch_has_a_case_that_needs_it():
    assert PATCHES.keys() == NEEDED.keys() | WITHOUT_A_CASE
    assert TF_KERAS_PATCHES.keys() == NEEDED_BY_TF_KERAS.keys()


def run(strategy, name, folder):
    workers = strategy.num_replicas_in_sync if strategy.cluster_resolver else 0
    with strategy.scope() if workers else contextlib.nullcontext():
        return {"result": run_case(name, folder, workers)}


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    known = {}

    def single(name, env):
        key = name, *env
        if key not in known:
            folder = str(tmp_path_factory.mktemp(name))
            known[key] = run_group("test_patches:run", workers=1, env=env, name=name, folder=folder)[0]["result"]
        return known[key]

    return single


@pytest.mark.parametrize(
    ("package", "patch", "name"),
    [("keras", *each) for each in NEEDED.items()] + [("tf_keras", *each) for each in NEEDED_BY_TF_KERAS.items()],
)
def test_a_case_fails_without_the_patch(package, patch, name, singles, tmp_path):
    env = {"TF_USE_LEGACY_KERAS": "1"} if package == "tf_keras" else {}
    single = singles(name, env)
    arguments = {"env": env, "timeout": 60, "name": name, "folder": str(tmp_path)}
    try:
        found = run_group("test_patches:run", workers=2, without=[patch], **arguments)
    except GroupFailed:
        return  # it raises, or hangs
    assert any(difference(CASES[name], single, each["result"], 2) for each in found), f"{package} needs no {patch}"
