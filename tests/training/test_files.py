"""Files that TensorFlow writes: the code that AutoGraph generates, and checkpoints on TensorFlow's file systems."""

import inspect
import os
import sys
import tempfile
import traceback

import pytest
import tensorflow as tf
from tensorflow.python.autograph.pyct import loader

from spark_tensorflow_distributor.resume import filesystems, snapshot
from spark_tensorflow_distributor.training.autograph_files import keep_no_generated_files


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """A new temporary directory, with AutoGraph's loader patched as in a trainer."""
    monkeypatch.setattr(loader, "load_source", loader.load_source)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    keep_no_generated_files()
    keep_no_generated_files()
    return tmp_path


def test_generated_code_leaves_no_file(temporary):
    def double(x):
        return x * 2 if x > 0 else x

    converted = tf.autograph.to_graph(double)
    assert float(converted(tf.constant(3.0))) == 6.0
    assert "def tf__double(x)" in inspect.getsource(converted)
    assert os.listdir(temporary) == []


def test_errors_in_generated_code_show_the_source_line(temporary):
    @tf.function
    def fails(x):
        if x > 0:
            raise ValueError("in a graph")
        return x

    with pytest.raises(ValueError, match="in user code") as info:
        fails(tf.constant(1.0))
    text = "".join(traceback.format_exception(info.value))
    assert 'raise ValueError("in a graph")' in text  # the user's line, which AutoGraph adds to the traceback
    assert "ag__.if_stmt" in text  # and the generated line
    assert os.listdir(temporary) == []


def test_checkpoints_are_stored_on_the_file_systems_of_tensorflow(tmp_path):
    files = filesystems.TensorFlowFilesystem("ram://checkpoints")
    files.create()
    for value in (1, 2):
        files.write("stfd-fit0-00000000.npz", lambda file, value=value: snapshot.write(file, {"a": value}, [value]))
    assert files.list() == ["stfd-fit0-00000000.npz"]
    with files.read("stfd-fit0-00000000.npz") as file:
        assert snapshot.read(file.read())[1] == [2]
    with pytest.raises(OSError, match="ram://checkpoints/missing"), files.read("missing"):
        pass
    files.remove("stfd-fit0-00000000.npz")
    assert files.list() == []
