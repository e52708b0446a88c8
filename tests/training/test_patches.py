"""Each patch is needed: without it, a case fails. If the case passes, upstream has fixed the fault."""

import contextlib
import functools
import http.server
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from conformance.launch import cases_of, difference, run_case
from conformance.table import dense, digits
from mwms import GroupFailed, run_group

from spark_tensorflow_distributor.training.patches import PATCHES, TF_KERAS_PATCHES

SUITES = {name: suite for suite in ("conformance", "programs") for name in cases_of(suite)}
# Each patch that both packages need, and a case of the conformance table or a program that needs it.
NEEDED = {
    "parts": "arrays",
    "gradients": "clip_global_norm",
    "sums": "loss_of_sums",
    "metrics": "distributed_guide",
    "epoch_results": "batch_normalization",
    "shuffled_arrays": "arrays_shuffled_without_a_seed",
    "dropout": "dropout",
    "noise": "noise",
}
NEEDED_BY = {
    "keras": {**NEEDED, "jit_compile": "jit_compile", "callbacks": "tensorboard"},
    "tf_keras": {**NEEDED, "step_logs": "batches_in_a_callback", "callbacks": "csv_logger"},
}
# These patches have separate tests, in this file or, for timed steps, in test_runner_training.py.
SHOWN_ELSEWHERE = {
    "keras": {"saved_models", "downloads", "mirrored"},
    "tf_keras": {"saved_models", "downloads", "timed_steps"},
}
ENVIRONMENTS = {"keras": {}, "tf_keras": {"TF_USE_LEGACY_KERAS": "1"}}


def test_every_patch_has_a_case_that_needs_it():
    assert PATCHES.keys() == NEEDED_BY["keras"].keys() | SHOWN_ELSEWHERE["keras"]
    assert TF_KERAS_PATCHES.keys() == NEEDED_BY["tf_keras"].keys() | SHOWN_ELSEWHERE["tf_keras"]


def run(strategy, names, folder):
    """Run cases one after the other, in a worker or in one process."""
    import tensorflow as tf

    workers = strategy.num_replicas_in_sync if strategy.cluster_resolver else 0
    results = {}
    for name in names:
        with strategy.scope() if workers else contextlib.nullcontext():
            results[name] = run_case(name, folder, workers, SUITES[name])
        tf.keras.backend.clear_session()
    return results


@functools.cache
def run_whole_table(package, workers):
    arguments = {"names": list(NEEDED_BY[package].values()), "folder": tempfile.mkdtemp()}
    try:
        return run_group("test_patches:run", workers=workers, env=ENVIRONMENTS[package], **arguments)
    except GroupFailed as error:
        return error


def whole_table(package, workers):
    """Return the results of all cases with all patches, by rank; the cases run only once."""
    found = run_whole_table(package, workers)
    if isinstance(found, GroupFailed):
        raise found
    return found


def is_right(package, name, found):
    (single,) = whole_table(package, 1)
    case = cases_of(SUITES[name])[name]
    return not any(difference(case, single[name], each[name], 2) for each in found)


each_case = pytest.mark.parametrize(
    ("package", "patch", "name"), [(package, *each) for package, needed in NEEDED_BY.items() for each in needed.items()]
)


@each_case
def test_a_case_is_right_with_the_patch(package, patch, name):
    assert is_right(package, name, whole_table(package, 2))


@each_case
def test_a_case_fails_without_the_patch(package, patch, name, tmp_path):
    arguments = {"env": ENVIRONMENTS[package], "timeout": 60, "names": [name], "folder": str(tmp_path)}
    try:
        found = run_group("test_patches:run", workers=2, without=[patch], **arguments)
    except GroupFailed:
        return  # the case raises or hangs
    assert not is_right(package, name, found), f"{package} needs no {patch}"


def save_interrupted(strategy, folder):
    """Interrupt a worker while it saves a model, and then load the file."""
    import tensorflow as tf

    with strategy.scope():
        model, other = dense(tf.keras), dense(tf.keras)
        whole, weights = (f"{folder}/{strategy.collectives.rank}{suffix}" for suffix in (".keras", ".weights.h5"))
        model.save(whole)
        model.save_weights(weights)
        before = model.get_weights()
        model.fit(*digits(), batch_size=48, verbose=0)

        def interrupt(store):
            raise InterruptedError

        model.layers[-1].save_own_variables = interrupt  # the first layer's are written by then
        for save, path in ((model.save, whole), (model.save_weights, weights)):
            with pytest.raises(InterruptedError):
                save(path)

        def loaded_weights():
            other.load_weights(weights)
            return other.get_weights()

        is_kept = []
        for load in (lambda: tf.keras.models.load_model(whole).get_weights(), loaded_weights):
            try:
                is_kept.append(all((one == old).all() for one, old in zip(load(), before, strict=True)))
            except Exception:  # of any type: the file is not complete
                is_kept.append(False)
    return {"is_kept": is_kept}


@pytest.mark.parametrize("package", NEEDED_BY)
@pytest.mark.parametrize(("without", "is_kept"), [([], True), (["saved_models"], False)])
def test_a_models_file_appears_as_a_whole_or_not_at_all(package, without, is_kept, tmp_path):
    arguments = {"env": ENVIRONMENTS[package], "without": without, "folder": str(tmp_path)}
    for found in run_group("test_patches:save_interrupted", workers=2, **arguments):
        assert found["is_kept"] == [is_kept, is_kept]
    if not without:
        names = [f"{rank}{suffix}" for rank in (0, 1) for suffix in (".keras", ".weights.h5")]
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def fetch(strategy, url, folder):
    """Let all ranks request a file at the same time, and return what they get."""
    import tensorflow as tf

    strategy.collectives.wait()
    path = tf.keras.utils.get_file("file.bin", origin=url, cache_dir=folder, cache_subdir="sets")
    return {"data": Path(path).read_bytes()}


@pytest.fixture
def slow_file():
    """The URL of a file that takes a second to arrive, its content, and a list with an item for each request."""
    data, requests = b"0123456789" * 1000, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100])
            self.wfile.flush()
            time.sleep(1)
            self.wfile.write(data[100:])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/file.bin", data, requests
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("package", NEEDED_BY)
@pytest.mark.parametrize(("without", "downloads"), [([], 1), (["downloads"], 2)])
def test_one_trainer_of_a_host_downloads_a_file(package, without, downloads, slow_file, tmp_path):
    url, data, requests = slow_file
    env = {**ENVIRONMENTS[package], "no_proxy": "127.0.0.1"}
    found = run_group("test_patches:fetch", workers=2, env=env, without=without, url=url, folder=str(tmp_path))
    assert len(requests) == downloads
    if not without:
        assert [each["data"] for each in found] == [data, data]


def fit_mirrored(strategy):
    """Train under TensorFlow's own strategy, whose workers may have different last batches."""
    import tensorflow as tf

    with strategy.scope():
        model = dense(tf.keras)
        history = model.fit(*digits(), batch_size=48, epochs=3, shuffle=False, verbose=0)
        evaluated = model.evaluate(*digits(), batch_size=48, verbose=0)
    return {"logs": [*history.history.values(), evaluated], "weights": model.get_weights()}


def test_keras_3_trains_under_the_strategy_of_tensorflow():
    first, second = run_group("test_patches:fit_mirrored", workers=2, engine="mirrored")
    assert np.isfinite(np.concatenate(first["logs"])).all()
    assert first["logs"][0][-1] < first["logs"][0][0] or first["logs"][1][-1] < first["logs"][1][0]
    assert first["logs"] == second["logs"]
    for one, other in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_keras_3_fails_under_the_strategy_of_tensorflow_without_the_patch():
    with pytest.raises(GroupFailed):
        run_group("test_patches:fit_mirrored", workers=2, engine="mirrored", without=["mirrored"], timeout=60)
