"""Checkpoints as files: they round-trip, and damage is detected."""

import io
import random

import numpy as np
import pytest

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import snapshot

STATE = {
    "numbers": [1, -2.5, float("inf"), True, None],
    "text": "ä",
    "bytes": b"\x00\xff",
    ("a", 1): (np.arange(6, dtype=np.int64).reshape(2, 3), np.float32(0.5)),
    3: {"empty": np.zeros((0, 4)), "scalar": np.array(7, np.uint8)},
    "texts": np.array([[b"x", b"longer"], [b"", b"y"]], object),
    "long": bytes(range(256)) * 10,
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def written(state=STATE, facts=None):
    file = io.BytesIO()
    snapshot.write(file, facts or {"epoch": 3}, state)
    return file.getvalue()


def check_equal(mine, theirs):
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert list(mine) == list(theirs)
        for key in mine:
            check_equal(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        for one, other in zip(mine, theirs, strict=True):
            check_equal(one, other)
    elif isinstance(mine, np.ndarray):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    else:
        assert mine == theirs


def test_a_checkpoint_round_trips():
    facts, state = snapshot.read(written())
    assert facts["epoch"] == 3
    check_equal(state, STATE)


def test_types_that_numpy_does_not_know_round_trip():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    _, state = snapshot.read(written([values, values[0]]))
    check_equal(state, [values, values[0]])


def test_numpy_opens_a_checkpoint():
    with np.load(io.BytesIO(written())) as file:
        np.testing.assert_array_equal(file["0"], np.arange(6).reshape(2, 3))


DEEP = CIRCLE = []
for _ in range(2000):
    DEEP = [DEEP]
CIRCLE = [1]
CIRCLE.append(CIRCLE)
STRUCTURED = np.zeros(2, [("a", "i4"), ("b", "f8")])


@pytest.mark.parametrize("value", [object(), {"inner": [1, {2, 3}]}, np.array([object()]), DEEP, CIRCLE, STRUCTURED])
def test_other_objects_are_rejected(value):
    with pytest.raises(CheckpointError, match="state"):
        written(value)
    with pytest.raises(CheckpointError):
        snapshot.copy_state({"deep": value})


def test_a_copy_is_independent_of_the_original():
    array = np.ones(3)
    copied = snapshot.copy_state({"array": array})
    array[:] = 0
    np.testing.assert_array_equal(copied["array"], np.ones(3))


@pytest.mark.parametrize("part", [0, 1, 10, 0.3, 0.7, 0.99, -1])
def test_a_truncated_file_is_detected(part):
    data = written()
    size = part if isinstance(part, int) else int(len(data) * part)
    with pytest.raises(CheckpointError):
        snapshot.read(data[:size])


def test_a_flipped_bit_is_detected_or_harmless():
    data = written()
    chance = random.Random(1)
    detected = 0
    for index in chance.sample(range(len(data)), 300):
        damaged = bytearray(data)
        damaged[index] ^= 1 << chance.randrange(8)
        try:
            _, state = snapshot.read(bytes(damaged))
        except CheckpointError:
            detected += 1
        else:  # in a date or an attribute of the archive's directory
            check_equal(state, STATE)
    assert detected > 200


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_foreign_files_are_rejected(data):
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this library|damaged"):
        snapshot.read(data)


def test_an_unknown_format_is_rejected():
    import json
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("facts.json", json.dumps({"format": "tomorrow's"}))
    with pytest.raises(CheckpointError, match="tomorrow's"):
        snapshot.read(file.getvalue())


def test_nothing_is_unpickled():
    file = io.BytesIO()
    np.savez(file, np.array([{"a": 1}], object))
    with pytest.raises(CheckpointError):
        snapshot.read(file.getvalue())


def test_the_fingerprint_tells_different_values_apart():
    def build(**changes):
        return {"a": [1, 2.0], "b": np.arange(6.0).reshape(2, 3), "c": np.array([b"x", b"yz"], object), **changes}

    states = [
        build(),
        build(a=(1, 2.0)),
        build(a=[1, 2]),
        build(b=np.arange(6.0).reshape(3, 2)),
        build(b=np.arange(6.0).reshape(2, 3).astype("float32")),
        build(c=np.array([b"xy", b"z"], object)),
    ]
    assert len({snapshot.fingerprint(each) for each in states}) == len(states)
    assert snapshot.fingerprint(build()) == snapshot.fingerprint(build())
    strided = np.repeat(build()["b"], 2, axis=1)[:, ::2]
    assert snapshot.fingerprint(build(b=strided)) == snapshot.fingerprint(build())
