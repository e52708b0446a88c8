"""Each mend is needed: without it, a case of the table is wrong. Where one is not any more, upstream has mended it."""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from conformance.launch import difference, run_case
from conformance.table import CASES
from mwms import GroupFailed, run_group

# The mend, and a case that needs it. ``unread_logs`` is for speed alone, and ``metric_variables`` and ``loss_scaling``
# are for releases of Keras before 3.10 and 3.8.
NEEDED = {
    "symbolic_build": "generator",
    "reduce_per_replica": "arrays",
    "shares": "arrays",
    "gradients": "clip_global_norm",
    "global_batches": "sequence",
    "shuffled_arrays": "arrays_shuffled_without_a_seed",
    "dropout": "dropout",
    "steps_per_execution": "steps_per_execution",
    "jit_compile": "jit_compile",
    "moving_statistics": "batch_normalization",
    "callbacks": "tensorboard",
}


def run(strategy, name, folder):
    workers = strategy.num_replicas_in_sync if strategy.cluster_resolver else 0
    with strategy.scope() if workers else contextlib.nullcontext():
        return {"result": run_case(name, folder, workers)}


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    known = {}

    def single(name):
        if name not in known:
            folder = str(tmp_path_factory.mktemp(name))
            known[name] = run_group("test_mends:run", workers=1, name=name, folder=folder)[0]["result"]
        return known[name]

    return single


@pytest.mark.parametrize("mend", NEEDED)
def test_without_it_a_case_fails(mend, singles, tmp_path):
    name = NEEDED[mend]
    single = singles(name)
    try:
        found = run_group("test_mends:run", workers=2, without=[mend], timeout=60, name=name, folder=str(tmp_path))
    except GroupFailed:
        return  # it raises, or hangs
    assert any(difference(CASES[name], single, each["result"], 2) for each in found), f"Keras has mended {mend} itself"
