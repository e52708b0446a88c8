"""The facts and the state that a checkpoint of ``fit`` contains."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..errors import CheckpointError
from ..formatting import one_line
from ..training.random_state import check_random_state
from . import snapshot
from .callback_state import CallbackState
from .snapshot import Facts

# The values of each optimizer's variables, by the expression under which the model holds the optimizer.
OptimizerStates: TypeAlias = dict[str, list[np.ndarray]]
# A variable's position in ``FitState.weights``, or the expression for one that Keras does not list.
VariableKey: TypeAlias = int | str
# For which variables each optimizer was built, ``model.optimizer`` included.
OptimizerTargets: TypeAlias = dict[str, list[VariableKey]]
# The values of the variables that the model and its callbacks hold, but Keras does not list, by expression.
HeldValues: TypeAlias = dict[str, np.ndarray]
# One rank's values of variables that differ between ranks, by position in ``FitState.weights``.
LayerState: TypeAlias = dict[int, np.ndarray]


class VariableSpec(NamedTuple):
    """A variable's name, shape and type; names may differ between processes that build the same model."""

    name: str
    shape: list[int]
    dtype: str


@dataclass
class Position:
    """The position of a ``fit``.

    Attributes:
        fit: Number of the call, from 0.
        epoch: The epoch, from 0.
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
        iterators: Number of iterators that Keras has created over the training data.
    """

    epoch_steps: int = 0
    iterators: int = 0


@dataclass(frozen=True)
class CheckpointFacts:
    """The metadata in a checkpoint of ``fit``.

    Attributes:
        run: Identifies the run.
        fit: Number of the call to ``fit``, from 0.
        epoch: The epoch in which to resume, from 0.
        step: Steps completed in that epoch.
        epoch_steps: See :class:`DataUse`.
        iterators: See :class:`DataUse`.
        sequence: Number of the checkpoint within its lane.
        complete: Whether the ``fit`` is complete.
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
    """The state in a checkpoint of ``fit``.

    Attributes:
        weights: Variables of model and optimizer; of those in ``layers``, the average over the ranks.
        metrics: Variables of the metrics.
        random: The state of the random generators, by rank.
        callbacks: The state of each callback.
        history: The history's values by name.
        epochs: The history's epoch numbers.
        optimizers: Variables of the other optimizers that the model holds than the one that it was compiled with.
        layers: The values of layers' variables that differ between ranks, by rank; such as moving statistics in
            mid-epoch.
        optimizer_targets: For which variables the optimizers were built, as far as known; None in older checkpoints.
        held: The variables that Keras does not list, by rank; of other ranks than rank 0, those with other values.
    """

    weights: list[np.ndarray]
    metrics: list[np.ndarray]
    random: list[dict[str, Any]]
    callbacks: list[CallbackState]
    history: dict[str, list[object]]
    epochs: list[int]
    optimizers: OptimizerStates = field(default_factory=dict)
    layers: list[LayerState] = field(default_factory=list)
    optimizer_targets: OptimizerTargets | None = None
    held: list[HeldValues] = field(default_factory=list)

    def target_of(self, optimizer: str) -> list[VariableKey] | None:
        """Return for which variables an optimizer was built; None if that is unknown."""
        return (self.optimizer_targets or {}).get(optimizer)

    def held_of(self, rank: int, world_size: int) -> HeldValues:
        """Return a rank's values of the variables that Keras does not list."""
        of_chief = self.held[0] if self.held else {}
        return of_chief | self.held[rank] if len(self.held) == world_size else of_chief

    def layers_of(self, rank: int, world_size: int) -> LayerState:
        """Return what a rank restores after ``weights``: nothing if the number of workers has changed."""
        return self.layers[rank] if len(self.layers) == world_size else {}


def held_by_rank(parts: Sequence[HeldValues]) -> list[HeldValues]:
    """Return rank 0's values, and those of the other ranks that differ from them."""
    first, *others = parts

    def differs(path: str, value: np.ndarray) -> bool:
        return path not in first or not np.array_equal(value, first[path])

    return [first, *({path: value for path, value in part.items() if differs(path, value)} for part in others)]


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a ``fit`` resumes from."""

    name: str
    facts: CheckpointFacts
    state: FitState

    @classmethod
    def decode(cls, data: bytes) -> "ResumePoint":
        """Decode the contents of a file.

        Everything that this library relies on later is checked here, on rank 0, which can still fall back to the
        previous checkpoint.

        Raises:
            CheckpointError: If the file is damaged, or is not a checkpoint of ``fit``.
        """
        facts, state = snapshot.read(data)
        try:
            point = cls(str(facts["name"]), CheckpointFacts.from_json(facts), FitState(**state))
            _check_facts(point.facts)
            _check_state(point.state, point.facts.variables)
        except CheckpointError:
            raise
        except Exception as error:  # the values in a file may be of any type
            raise CheckpointError(f"it is not a checkpoint of fit() by this version: {one_line(error)}") from error
        return point


def _check_facts(facts: CheckpointFacts) -> None:
    for each in fields(facts):
        value = getattr(facts, each.name)
        if each.type in ("int", int) and (type(value) is not int or value < 0):
            raise CheckpointError(f"its {each.name} is {value!r:.100}; it must be a whole number")
    if type(facts.complete) is not bool:
        raise CheckpointError(f"its field 'complete' is {facts.complete!r:.100}; it must be true or false")


def _check_state(state: FitState, variables: list[VariableSpec]) -> None:
    shapes, saved = [list(each.shape) for each in variables], [list(np.shape(each)) for each in state.weights]
    arrays = [*state.weights, *state.metrics, *itertools.chain.from_iterable(state.optimizers.values())]
    if shapes != saved or not all(isinstance(each, np.ndarray | np.generic) for each in arrays):
        raise CheckpointError(f"its {len(saved)} arrays are not those of its {len(shapes)} variables")
    for index, value in itertools.chain.from_iterable(of_rank.items() for of_rank in state.layers):
        known = type(index) is int and 0 <= index < len(saved)
        if not known or not isinstance(value, np.ndarray | np.generic) or list(value.shape) != shapes[index]:
            raise CheckpointError("its state of layers is not that of its variables")
    keys = list(itertools.chain.from_iterable((state.optimizer_targets or {}).values()))
    if not all(isinstance(key, str) or (type(key) is int and 0 <= key < len(saved)) for key in keys):
        raise CheckpointError("its optimizers do not train its variables")
    for path, value in itertools.chain.from_iterable(of_rank.items() for of_rank in state.held):
        if not isinstance(path, str) or not isinstance(value, np.ndarray | np.generic):
            raise CheckpointError("its variables that Keras does not list are not arrays")
    for each in state.random:
        check_random_state(each)
    for callback in state.callbacks:
        if not all(
            isinstance(name, str) for name in [callback["class"], *callback["state"], *callback.get("in_place", ())]
        ):
            raise CheckpointError("its state of a callback lacks a name")
    epochs = [each for each in state.epochs if type(each) is int]
    if len(epochs) != len(state.epochs) or not all(isinstance(each, list) for each in state.history.values()):
        raise CheckpointError("its history is not a list of values per epoch")
