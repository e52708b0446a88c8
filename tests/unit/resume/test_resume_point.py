"""A checkpoint of ``fit`` as a file and back."""

import io

import numpy as np
import pytest

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import snapshot
from spark_tensorflow_distributor.resume.resume_point import (
    CheckpointFacts,
    FitState,
    ResumePoint,
    VariableSpec,
    held_by_rank,
)
from spark_tensorflow_distributor.training.random_state import random_state

FACTS = CheckpointFacts(
    run="r", fit=1, epoch=2, step=3, epoch_steps=4, iterators=5, sequence=6, complete=False, world_size=2,
    variables=[VariableSpec("kernel", [2, 3], "float32")],
)  # fmt: skip
NAMED = {**FACTS.to_json(), "name": "fit1-00000006"}


def state(**changes):
    weights, metrics = [np.ones((2, 3), np.float32)], [np.float32(1)]
    callbacks = [{"class": "EarlyStopping", "state": {"wait": 1}}]
    return vars(FitState(weights, metrics, [random_state()], callbacks, {"loss": [0.5]}, [0])) | changes


def decoded(facts, contents):
    file = io.BytesIO()
    snapshot.write(file, facts, contents)
    return ResumePoint.decode(file.getvalue())


def test_facts_and_state_survive_the_file():
    point = decoded(NAMED, state())
    assert (point.name, point.facts) == ("fit1-00000006", FACTS)
    np.testing.assert_array_equal(point.state.weights[0], np.ones((2, 3), np.float32))
    assert (point.state.history, point.state.epochs) == ({"loss": [0.5]}, [0])


def test_each_rank_has_its_own_state_of_layers_unless_the_number_of_ranks_changes():
    own = [{0: np.full((2, 3), rank, np.float32)} for rank in range(2)]
    found = decoded(NAMED, state(layers=own)).state
    assert found.layers_of(1, 2)[0].tolist() == own[1][0].tolist()
    assert found.layers_of(1, 3) == {}
    assert decoded(NAMED, state()).state.layers_of(0, 2) == {}


def test_each_rank_has_its_own_values_of_variables_that_keras_does_not_list():
    ranks = [{"a": np.array(1), "b": np.zeros(2)}, {"a": np.array(2), "b": np.zeros(2)}, {}]
    held = held_by_rank(ranks)
    assert [sorted(each) for each in held] == [["a", "b"], ["a"], []]
    found = decoded(NAMED, state(held=held)).state
    assert [int(found.held_of(rank, 3)["a"]) for rank in range(3)] == [1, 2, 1]
    assert int(found.held_of(1, 2)["a"]) == 1
    assert decoded(NAMED, state()).state.held_of(0, 3) == {}


def test_older_checkpoints_do_not_say_what_each_optimizer_trains():
    assert decoded(NAMED, state(optimizer_targets={"optimizer": [0]})).state.target_of("optimizer") == [0]
    older = state()
    del older["optimizer_targets"]
    assert decoded(NAMED, older).state.target_of("optimizer") is None


@pytest.mark.parametrize(
    ("facts", "contents"),
    [
        ({}, state()),
        (NAMED | {"epoch": "2"}, state()),
        (NAMED | {"step": -1}, state()),
        (NAMED | {"complete": None}, state()),
        (NAMED | {"variables": [["kernel", [3, 2], "float32"]]}, state()),
        (NAMED | {"variables": 7}, state()),
        (NAMED, None),
        (NAMED, {"weights": []}),
        (NAMED, state(weights=[])),
        (NAMED, state(weights=[[[1.0] * 3] * 2])),
        (NAMED, state(metrics=[None])),
        (NAMED, state(random=[{"python": [3]}])),
        (NAMED, state(callbacks=[{"class": "EarlyStopping", "state": [1]}])),
        (NAMED, state(history={"loss": 1})),
        (NAMED, state(epochs=["0"])),
        (NAMED, state(layers=[{0: np.ones((3, 2), np.float32)}])),
        (NAMED, state(layers=[{1: np.ones((2, 3), np.float32)}])),
        (NAMED, state(layers=[{-1: np.ones((2, 3), np.float32)}])),
        (NAMED, state(layers=[{"0": np.ones((2, 3), np.float32)}])),
        (NAMED, state(layers=[{0: [[1.0] * 3] * 2}])),
        (NAMED, state(layers=7)),
        (NAMED, state(optimizer_targets={"optimizer": [1]})),
        (NAMED, state(optimizer_targets={"optimizer": [None]})),
        (NAMED, state(optimizer_targets={"optimizer": 0})),
        (NAMED, state(held=[{"a": 1}])),
        (NAMED, state(held=[{1: np.ones(1)}])),
        (NAMED, state(held=7)),
        (NAMED, state(extra=1)),
    ],
)
def test_a_checkpoint_of_something_else_is_rejected_before_it_is_used(facts, contents):
    with pytest.raises(CheckpointError):
        decoded(facts, contents)
