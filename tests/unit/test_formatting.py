from spark_tensorflow_distributor.formatting import gibibytes, mebibytes, one_line


def test_sizes():
    assert mebibytes(3 << 19) == "1.5 MiB"
    assert gibibytes(3 << 29) == "1.5 GiB"


def test_an_error():
    assert one_line(KeyError("name")) == "KeyError: 'name'"
