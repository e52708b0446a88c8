"""Checkpoint files from somebody else: whatever is in them, reading ends with a state or a CheckpointError."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import archive, snapshot

FACTS = json.dumps({"format": snapshot.FORMAT})


def crafted(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return file.getvalue()


def with_array(header, data=b"", skeleton='{"array": 0}'):
    text = header.encode()
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
    return crafted({"facts.json": FACTS, "state.json": skeleton, "0.npy": array})


def header(descr="'<f8'", shape="(2,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


def read(data):
    """Return the state, or None if the file is rejected, and check what memory it took."""
    tracemalloc.start()
    try:
        return snapshot.read(data)[1]
    except CheckpointError:
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100 * len(data) + (8 << 20)


def test_the_crafted_files_of_this_test_are_valid_but_for_their_content():
    np.testing.assert_array_equal(read(with_array(header(), np.ones(2).tobytes())), np.ones(2))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(crafted({"facts.json": FACTS, "state.json": b"[" * 200_000}), id="deep JSON"),
        pytest.param(crafted({"facts.json": FACTS, "state.json": "9" * 10_000}), id="long number"),
        pytest.param(crafted({"facts.json": "[]", "state.json": "1"}), id="facts are a list"),
        pytest.param(crafted({"facts.json": b"\xff\xfe", "state.json": "1"}), id="no text"),
        pytest.param(
            crafted({"facts.json": FACTS, "state.json": b" " * (40 << 20) + b"1"}, zipfile.ZIP_DEFLATED), id="bomb"
        ),
        pytest.param(with_array(header(shape="(1 << 40,)")), id="shape that is computed"),
        pytest.param(with_array(header(shape=f"({1 << 40},)")), id="huge shape"),
        pytest.param(with_array(header(shape=f"({1 << 70},)")), id="overflowing shape"),
        pytest.param(with_array(header(shape=f"({1 << 62}, 4)")), id="shape that wraps"),
        pytest.param(with_array(header(shape="(-2, -1)"), bytes(16)), id="negative shape"),
        pytest.param(with_array(header("'V0'", f"({1 << 60},)")), id="elements of no size"),
        pytest.param(with_array(header("'S0'", f"({1 << 60},)")), id="texts of no size"),
        pytest.param(with_array(header("'|O'"), bytes(16)), id="objects"),
        pytest.param(with_array(header("[('a', '<f8')]"), bytes(16)), id="structure"),
        pytest.param(with_array(header(f"('<f8', ({1 << 40},))")), id="huge element"),
        pytest.param(with_array(header("(" * 5000)), id="deep header"),
        pytest.param(with_array(header(), np.ones(1).tobytes()), id="too few bytes"),
        pytest.param(with_array(header(), np.ones(3).tobytes()), id="too many bytes"),
        pytest.param(
            with_array(header(), bytes(16), '{"list": [{"array": 0}, {"array": 0}]}'), id="an array that is used twice"
        ),
        pytest.param(with_array(header(), bytes(16), '{"array": 0, "dtype": "finfo"}'), id="type that is none"),
        pytest.param(with_array(header(), bytes(16), '{"array": 0, "dtype": "bfloat16"}'), id="type of another size"),
        pytest.param(with_array(header(), bytes(16), '{"array": "../../etc/passwd"}'), id="path"),
        pytest.param(with_array(header(), bytes(16), '{"dict": [[[1], 2]]}'), id="pairs that are none"),
        pytest.param(with_array(header(), bytes(16), '{"dict": [[{"list": []}, 2]]}'), id="keys that have no hash"),
        pytest.param(with_array(header(), bytes(16), '{"texts": 0, "sizes": 0, "shape": [1]}'), id="texts"),
    ],
)
def test_a_crafted_file_is_rejected(data):
    assert read(data) is None


def test_encrypted_members_are_rejected():
    data = bytearray(with_array(header(), bytes(16)))
    for offset, signature in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        place = -1
        while (place := data.find(signature, place + 1)) >= 0:
            data[place + offset] |= 1
    with pytest.raises(CheckpointError, match="flags"):
        snapshot.read(bytes(data))


def test_members_that_overlap_are_rejected():
    data = with_array(header(), bytes(1 << 16))
    entry = data[(first := data.rindex(b"PK\x01\x02")) : data.rindex(b"PK\x05\x06")]
    many = bytearray(data[:first] + entry * 500 + data[first + len(entry) :])
    end = many.rindex(b"PK\x05\x06")
    many[end + 8 : end + 12] = (502).to_bytes(2, "little") * 2
    many[end + 12 : end + 16] = (end - data.index(b"PK\x01\x02")).to_bytes(4, "little")
    with pytest.raises(CheckpointError, match="members have"):
        snapshot.read(bytes(many))


def test_a_text_that_is_too_long_is_neither_written_nor_read(monkeypatch):
    file = io.BytesIO()
    snapshot.write(file, {}, ["x" * 2000])
    for module in (archive, snapshot):
        monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(CheckpointError, match="Save long lists as NumPy arrays"):
        snapshot.write(io.BytesIO(), {}, ["x" * 2000])
    with pytest.raises(CheckpointError, match=r"state\.json"):
        snapshot.read(file.getvalue())


def valid():
    file = io.BytesIO()
    texts = np.array([b"a", b"bc"], object)
    snapshot.write(file, {"epoch": 1}, {"weights": [np.ones((3, 2), np.float32), texts], "n": (1, None, b"x" * 2000)})
    return file.getvalue()


VALID = valid()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["array", "bytes", "dict", "list", "tuple", "texts", "sizes", "shape", "dtype", "scalar"]),
            inner | st.integers(0, 3) | st.lists(st.lists(inner, min_size=2, max_size=2), max_size=3),
            max_size=3,
        )
    ),
    max_leaves=20,
)
DESCRIPTIONS = st.sampled_from(["<f8", "|u1", "|O", "<U3", "|S0", "|V8", "<M8[s]", ">i2"]) | st.text(max_size=6)
HEADERS = st.one_of(
    st.text(max_size=50),
    st.builds(
        lambda descr, shape, order: header(repr(descr), repr(tuple(shape)), repr(order)),
        DESCRIPTIONS, st.lists(st.integers(-2, 1 << 65), max_size=4), st.booleans(),
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(VALID)))
def test_any_damage_is_noticed_or_harmless(changes, end):
    data = bytearray(VALID)
    for place, value in changes:
        data[place] = value
    for contents in (bytes(data), bytes(data[:end]), bytes(data[:end] + data)):
        read(contents)


@settings(max_examples=150, deadline=None)
@given(JSON, HEADERS, st.binary(max_size=40))
def test_any_state_is_rebuilt_or_rejected(skeleton, text, values):
    text = text.encode("latin-1", "replace").decode("latin-1")
    read(with_array(text, values, json.dumps(skeleton)))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["facts.json", "state.json", "0.npy", "x"]), st.binary(max_size=60), max_size=4),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
)
def test_any_archive_is_read_or_rejected(members, compression):
    assert read(crafted(members, compression)) is None
