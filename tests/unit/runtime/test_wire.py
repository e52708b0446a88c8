import io

import pytest

from spark_tensorflow_distributor.runtime.wire import (
    FrameReader,
    decode,
    encode,
    frame,
    from_columns,
    pieces,
    to_columns,
)


def test_frames_are_reassembled_from_any_pieces():
    messages = [{"a": 1}, {"text": "ünï" * 100}, {}]
    data = b"".join(map(frame, messages))
    for size in (1, 3, 7, len(data)):
        reader = FrameReader()
        out = [m for start in range(0, len(data), size) for m in reader.feed(data[start : start + size])]
        assert out == messages


def test_a_foreign_protocol_is_rejected():
    with pytest.raises(ValueError, match="not one of ours"):
        list(FrameReader().feed(b"GET / HTTP/1.1\r\n"))


def test_pieces_are_one_mebibyte():
    data = bytes(range(256)) * 5000
    file, size = io.BytesIO(data + b"more"), len(data)
    assert b"".join(pieces(file, size)) == data
    assert [len(c) for c in pieces(file, size)] == [1 << 20, 256 * 5000 - (1 << 20)]
    assert list(pieces(file, 0)) == []


def test_large_messages_between_hosts_are_compressed():
    small, large = {"a": "ü"}, {"members": [{"host": "h", "port": number} for number in range(5000)]}
    assert encode(small) == b'{"a":"\\u00fc"}'
    assert len(encode(large)) < 20_000
    assert [decode(encode(each)) for each in (small, large)] == [small, large]


def test_records_are_rearranged_and_restored():
    records = [{"rank": 0, "host": "a"}, {"rank": 1, "host": "b"}]
    assert to_columns(records) == {"rank": [0, 1], "host": ["a", "b"]}
    assert from_columns(to_columns(records)) == records
