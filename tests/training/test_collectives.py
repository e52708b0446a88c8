"""Collectives over the ranks of a group of processes."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import GroupFailed, run_group

DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool", "complex64")
LENGTHS = (0, 1, 2, 999, 1000, 1001, 70_000)
DATA = bytes(range(256)) * 300
# Shapes of tensors that are reduced together; some exceed the maximum size of a pack in this test.
SHAPES = [(), (3,), (0, 2), (40,), (2, 3), (5,)]


def values(rank, dtype, rows=2):
    """Return a rank's rows of three values, which are exact in this type but not in a narrower one."""
    base = np.arange(3 * rows).reshape(rows, 3) + 1 + rank
    if dtype == "bool":
        return base % 2 == 0
    if dtype == "complex64":
        return base + 1j * (3 * rank - base)
    finest = {"float64": 2.0**-40, "float32": 2.0**-16, "int64": 2**40, "int32": 2**28}
    return base + finest.get(dtype, 0)


def rows_of(rank):
    """Return how many rows a rank gathers; rank 0 has none."""
    return 2 * rank


def call_collectives(strategy, **_):
    """Return the result of each call in this process."""
    import tensorflow as tf

    from spark_tensorflow_distributor.training import collectives, tf_collectives

    collectives._CHUNK_BYTES, collectives._PACK_BYTES = 1000, 100  # so that small data is sent in several pieces, too
    group = getattr(strategy, "collectives", None) or tf_collectives.NO_COLLECTIVES
    rank = group.rank
    found = {"rank": rank, "size": group.world_size, "tensors": {}}
    for dtype in DTYPES:
        for name, call in calls(tf, group).items():
            rows = rows_of(rank) if name == "gather_rows" else 2
            tensor = tf.cast(tf.constant(values(rank, dtype, rows)), dtype)
            # With and without a static shape: the shape of a batch is often unknown.
            functions = {
                "eager": call,
                "function": tf.function(call),
                "unknown": tf.function(call, input_signature=[tf.TensorSpec([None, None], dtype)]),
            }
            for mode, function in functions.items():
                results = tf.nest.flatten(function(tensor))
                wide = [tf.cast(each, "complex128" if dtype == "complex64" else "float64") for each in results]
                found["tensors"][name, dtype, mode] = [
                    (each.dtype.name, exact.numpy()) for each, exact in zip(results, wide, strict=True)
                ]
    found.update(bytes_and_arrays(group))
    return found


def calls(tf, group):
    def packed(tensor):
        vector = tf.reshape(tensor, [-1])[:1]
        others = [tf.fill(shape, tf.cast(group.rank + 1, tf.float32)) for shape in SHAPES]
        return group.all_reduce_packed([vector, *others]), group.all_reduce_packed(others, tf.constant(0.5))

    return {
        "all_reduce": group.all_reduce,
        "all_gather": group.all_gather,
        "gather_rows": group.gather_rows,
        "all_reduce_packed": packed,
    }


def bytes_and_arrays(group):
    rank, dtypes = group.rank, ("float16", "float32", "float64")
    found = {
        "gathered": group.gather_bytes(bytes([rank]) * (3 * rank + 1)),
        "empty": group.gather_bytes(b""),
        "one empty": group.gather_bytes(b"x" if rank == 0 else b""),
        "broadcast bytes": {length: group.broadcast_bytes(DATA[:length] if rank == 0 else None) for length in LENGTHS},
        "nothing": group.broadcast_bytes(None),
        "broadcast": group.broadcast(arrays(rank)),
        "means": group.means([np.full((2, 2), rank + 0.5, dtype) for dtype in dtypes]),
        "scalar mean": group.means([np.float32(rank)])[0],
    }
    group.wait()
    return found


def arrays(rank):
    """Return arrays whose values differ between ranks; shapes and types are the same."""
    return [
        np.full((3, 700), rank + 0.25),
        np.float32(rank),
        np.zeros((0, 4), "int8"),
        np.asarray([rank == 0, True]),
        np.asfortranarray(np.arange(6).reshape(2, 3) * (rank + 1)),
        np.full(3, rank + 1j, "complex64"),
    ]


@functools.cache
def group_of(workers, engine):
    """Run a group once, and return its results or its error."""
    try:
        return run_group("test_collectives:call_collectives", workers=workers, timeout=90, engine=engine)
    except GroupFailed as error:
        return error


def results_of(workers, engine):
    found = group_of(workers, engine)
    if isinstance(found, GroupFailed):
        raise found
    assert [(each["rank"], each["size"]) for each in found] == [(rank, workers) for rank in range(workers)]
    return found


of_engines = pytest.mark.parametrize(("workers", "engine"), [(2, "sockets"), (3, "sockets"), (3, "tensorflow")])
of_modes = pytest.mark.parametrize("mode", ["eager", "function", "unknown"])
of_arrays = pytest.mark.parametrize(
    ("workers", "engine"), [(1, "sockets"), (2, "sockets"), (3, "sockets"), (3, "tensorflow")]
)


@of_engines
@of_modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_type(workers, engine, mode, dtype):
    stacked = np.stack([values(rank, dtype) for rank in range(workers)])
    expected = {
        "all_reduce": ("int32" if dtype == "bool" else dtype, stacked.sum(0)),  # booleans are counted
        "all_gather": (dtype, stacked),
        "gather_rows": (dtype, np.concatenate([values(rank, dtype, rows_of(rank)) for rank in range(workers)])),
    }
    for found in results_of(workers, engine):
        for name, (kind, array) in expected.items():
            ((found_kind, found_array),) = found["tensors"][name, dtype, mode]
            assert found_kind == kind, name
            np.testing.assert_array_equal(found_array, array, err_msg=name)


@of_engines
@of_modes
def test_tensors_that_are_reduced_together(workers, engine, mode):
    total = sum(rank + 1 for rank in range(workers))
    for found in results_of(workers, engine):
        for dtype in DTYPES:
            (_, first), *others = found["tensors"]["all_reduce_packed", dtype, mode]
            assert first == sum(values(rank, dtype)[0, :1].astype(complex) for rank in range(workers))
            plain, scaled = others[: len(SHAPES)], others[len(SHAPES) :]
            assert [array.shape for _, array in plain] == [array.shape for _, array in scaled] == SHAPES
            assert all((array == total).all() for _, array in plain)
            assert all((array == 0.5 * total).all() for _, array in scaled)


@of_arrays
def test_bytes_reach_all_ranks(workers, engine):
    for found in results_of(workers, engine):
        assert found["gathered"] == [bytes([rank]) * (3 * rank + 1) for rank in range(workers)]
        assert found["empty"] == [b""] * workers
        assert found["one empty"] == [b"x"] + [b""] * (workers - 1)
        assert found["nothing"] is None
        assert found["broadcast bytes"] == {length: DATA[:length] for length in LENGTHS}


@of_arrays
def test_the_arrays_of_rank_0_reach_all_ranks(workers, engine):
    for found in results_of(workers, engine):
        for array, expected in zip(found["broadcast"], arrays(0), strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


@of_arrays
def test_means_keep_their_type(workers, engine):
    mean = sum(range(workers)) / workers
    for found in results_of(workers, engine):
        assert [each.dtype.name for each in found["means"]] == ["float16", "float32", "float64"]
        for each in found["means"]:
            np.testing.assert_array_equal(each, np.full((2, 2), mean + 0.5))
        assert found["scalar mean"] == mean


def call_in_control_flow(strategy):
    """Return the sums of operations that only the program puts in order: none of them needs another's result."""
    import tensorflow as tf

    collectives = strategy.collectives
    state = tf.Variable(0.0)

    @tf.function
    def inner(x):
        state.assign_add(1.0)
        return collectives.all_reduce(x)

    @tf.function
    def program(x):
        sums = [collectives.all_reduce(x + number) for number in range(6)]
        total = tf.zeros(())
        for number in tf.range(5):  # a TensorFlow loop, with a condition and a call
            if number % 2 == 0:
                total += collectives.all_reduce(tf.cast(number, tf.float32))
            else:
                total += inner(x) + collectives.all_reduce(state)
        sums += [collectives.all_reduce(x - number) for number in range(6)]
        gathered = collectives.all_gather(x)
        return tf.stack([*sums, total]), gathered

    rank = float(collectives.rank)
    repeats = [program(tf.constant(rank)) for _ in range(20)]
    return {"sums": [sums.numpy() for sums, _ in repeats], "gathered": [each.numpy() for _, each in repeats]}


@pytest.mark.parametrize("workers", [2, 3])
def test_operations_of_a_graph_keep_the_order_of_the_program(workers):
    """Otherwise TensorFlow would execute each one when its inputs are ready, in another order on each worker."""
    ranks = sum(range(workers))
    for found in run_group("test_collectives:call_in_control_flow", workers=workers, timeout=90):
        for repeat, (sums, gathered) in enumerate(zip(found["sums"], found["gathered"], strict=True)):
            before = [ranks + workers * number for number in range(6)]
            after = [ranks - workers * number for number in range(6)]
            states = (2 * repeat + 1) + (2 * repeat + 2)
            np.testing.assert_allclose(sums, [*before, *after, workers * 6 + 2 * ranks + workers * states])
            np.testing.assert_array_equal(gathered, range(workers))
