"""What a checkpoint says about a ``fit``, and what it holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from .callback_state import CallbackState
from .snapshot import Facts


class VariableSpec(NamedTuple):
    """A variable's name, shape and type; names may differ between two processes that build the same model."""

    name: str
    shape: list[int]
    dtype: str


@dataclass
class Position:
    """Where a ``fit`` is.

    Attributes:
        fit: Number of the call, from 0.
        epoch: From 0.
        step: Steps completed in this epoch.
    """

    fit: int
    epoch: int
    step: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class DataUse:
    """How much of its data a ``fit`` has consumed.

    Attributes:
        epoch_steps: Steps of the last complete epoch; 0 before its end.
        iterators: Iterators that Keras has made of the training data.
    """

    epoch_steps: int = 0
    iterators: int = 0


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint of ``fit`` says about itself.

    Attributes:
        run: Identifies the run.
        fit: Number of the call of ``fit``, from 0.
        epoch: The epoch in which to resume, from 0.
        step: Steps completed in that epoch.
        epoch_steps: See :class:`DataUse`.
        iterators: See :class:`DataUse`.
        sequence: Number of the checkpoint within its lane.
        complete: Whether the ``fit`` had ended.
        world_size: Number of workers.
        variables: The model's and the optimizer's variables, in the order of ``FitState.weights``.
    """

    run: str
    fit: int
    epoch: int
    step: int
    epoch_steps: int
    iterators: int
    sequence: int
    complete: bool
    world_size: int
    variables: list[VariableSpec]

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Facts) -> "CheckpointFacts":
        variables = [VariableSpec(*each) for each in facts["variables"]]
        return cls(**{each.name: facts[each.name] for each in fields(cls)} | {"variables": variables})


@dataclass
class FitState:
    """What a checkpoint of ``fit`` holds.

    Attributes:
        weights: Variables of model and optimizer.
        metrics: Variables of the metrics.
        random: The state of the random generators, by rank.
        callbacks: What each callback has learned so far.
        history: The history's values by name.
        epochs: The history's epochs.
    """

    weights: list[np.ndarray]
    metrics: list[np.ndarray]
    random: list[dict[str, Any]]
    callbacks: list[CallbackState]
    history: dict[str, list[object]]
    epochs: list[int]


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a ``fit`` resumes from."""

    name: str
    facts: CheckpointFacts
    state: FitState

    @classmethod
    def of(cls, facts: Facts, state: Mapping[str, Any]) -> "ResumePoint":
        """Make one of what :func:`.snapshot.read` returns."""
        return cls(facts["name"], CheckpointFacts.from_json(facts), FitState(**state))
