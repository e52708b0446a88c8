from spark_tensorflow_distributor.runtime.agent.output import LineSplitter, Tail, decode


def test_lines_are_split():
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == [b"one"]
    assert splitter.feed(b"o\n10%\r20%\r30%\n") == [b"two", b"30%"]
    assert splitter.feed(b"windows\r\n\n") == [b"windows", b""]
    assert splitter.feed(b"rest") == []
    assert splitter.close() == [b"rest"]
    assert splitter.close() == []


def test_a_long_line_is_split_into_pieces():
    splitter = LineSplitter()
    assert [len(line) for line in splitter.feed(b"x" * 20_000)] == [8192, 8192]
    assert [len(line) for line in splitter.close()] == [20_000 - 2 * 8192]
    assert [len(line) for line in LineSplitter().feed(b"x" * 20_000 + b"\n")] == [8192, 8192, 20_000 - 2 * 8192]


def test_a_long_line_is_split_between_characters():
    text = "a" + "€" * 5000  # of three bytes each
    splitter = LineSplitter()
    lines = splitter.feed(text.encode())
    lines += splitter.close()
    assert [decode(line) for line in lines] == [text[:2731], text[2731:]]
    assert [len(line) for line in LineSplitter().feed(b"\x80" * 10_000)] == [8192]  # not UTF-8


def test_bytes_that_are_not_utf8_become_escapes():
    assert decode(b"\xffabc") == "\\xffabc"


def test_the_tail_keeps_the_last_lines():
    tail = Tail(max_lines=2, max_bytes=3)
    for line in (b"aaaa", b"bbbb", b"cccc"):
        tail.add(line)
    assert tail.get() == ("bbb", "ccc")
