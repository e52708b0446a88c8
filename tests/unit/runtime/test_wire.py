import pytest

from spark_tensorflow_distributor.runtime.wire import FrameReader, chunks, frame


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


def test_chunks_are_one_mebibyte():
    data = memoryview(bytes(range(256)) * 5000)
    assert b"".join(chunks(data)) == data
    assert [len(c) for c in chunks(data)] == [1 << 20, 256 * 5000 - (1 << 20)]
    assert list(chunks(memoryview(b""))) == []
