"""Fingerprints tell different trainings apart, and are the same in another process."""

import enum
import functools
import os
import subprocess
import sys

import numpy as np

from spark_tensorflow_distributor.ml.fingerprint import fingerprint

PROGRAM = """
import enum, functools, sys
from spark_tensorflow_distributor.ml.fingerprint import fingerprint

class Kind(enum.Enum):
    WIDE = 1

class Settings:
    names = {"a", "b", "c", "d"}
    def __init__(self, units):
        self.units = units
    def doubled(self):
        return build(self.units, again=False)

def build(units, again=True):
    return Settings(units).doubled() if again else {"x", "y", "z"} | {units}

print(fingerprint({"modelFn": functools.partial(build, units=3), "modelParams": {"s": Settings(2), "k": Kind.WIDE}}))
"""


def make(constant):
    return lambda: constant


class Box:
    def __init__(self, content):
        self.content = content


class Kind(enum.Enum):
    WIDE = 1
    DEEP = 2


def build(units=1):
    return units


def test_different_values_have_different_fingerprints():
    values = [
        functools.partial(build, units=1), functools.partial(build, units=64), build, make(1), make(2),
        lambda: 1, lambda: 2, Box(1), Box(2), Box, np.zeros(3), np.ones(3), np.zeros((3, 1)), [1, [2]], [[1], 2],
        {"a": 1}, {"a": 2}, "1", 1, 1.0, True, None, b"1", Box(1).__init__, Box([1]), np.tanh, max, min,
        Kind.WIDE, Kind.DEEP, [].append, [].extend,
    ]  # fmt: skip
    assert len({fingerprint(each) for each in values}) == len(values)


def test_equal_values_have_equal_fingerprints():
    for first, second in [
        (make(3), make(3)), (Box([1]), Box([1])), ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (functools.partial(build, units=2), functools.partial(build, units=2)), (np.ones(3), np.ones(3)),
    ]:  # fmt: skip
        assert fingerprint(first) == fingerprint(second)


def test_circular_references_end():
    box = Box(None)
    box.content = [box]
    assert fingerprint(box) != fingerprint(Box([None]))


def test_another_process_finds_the_same_wherever_its_program_is(tmp_path):
    found = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        program = tmp_path / seed / f"program_{seed}.py"
        program.write_text("\n" * int(seed) + PROGRAM)
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]
