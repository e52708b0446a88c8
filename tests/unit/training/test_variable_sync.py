"""Which variables workers exchange, with stand-ins for TensorFlow and for the way to the other workers."""

import gc
import importlib
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

SIZE = 2


@pytest.fixture
def module(stub_tensorflow):
    return importlib.import_module("spark_tensorflow_distributor.training.variable_sync")


@pytest.fixture
def variable(stub_tensorflow):
    """Return a function that makes a stand-in for a variable."""

    class Variable(stub_tensorflow.Variable):
        def __init__(self, value, name="w", kind="f", initialized=True, **attributes):
            self.value, self.name, self.shape = np.asarray(value), name, Shape(np.shape(value))
            self.dtype = types.SimpleNamespace(
                name=f"kind {kind}",
                is_floating=kind == "f",
                is_integer=kind == "i",
                is_bool=False,
                is_complex=False,
            )
            self.is_initialized, self.assigned = lambda: initialized, 0
            vars(self).update(attributes)

        def numpy(self):
            return self.value

        def assign(self, value):
            self.value, self.assigned = value, self.assigned + 1

    class Shape(tuple):
        def num_elements(self):
            return int(np.prod(self))

    return Variable


class Peers:
    """The ranks of a group, as threads that meet; it counts the meetings."""

    def __init__(self):
        self.barrier, self.slots, self.meetings = threading.Barrier(SIZE, timeout=20), [None] * SIZE, 0

    def all_of(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.meetings += rank == 0
        self.barrier.wait()
        return found

    def collectives(self, rank):
        return types.SimpleNamespace(
            rank=rank,
            world_size=SIZE,
            gather_bytes=lambda data: self.all_of(rank, data),
            broadcast=lambda arrays: self.all_of(rank, arrays)[0],
        )

    def run(self, function):
        """Call a function of rank and collectives for each rank, and return the results."""
        with ThreadPoolExecutor(SIZE) as pool:
            calls = [pool.submit(function, rank, self.collectives(rank)) for rank in range(SIZE)]
            return [call.result() for call in calls]


@pytest.fixture
def peers():
    return Peers()


def test_new_variables_get_the_values_of_rank_0(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        variables = [variable([rank + 1.0, 5.0]), variable([7.0, 8.0], "alike"), variable([rank, rank], "constant")]
        for each in variables:
            sync.add(each, on_all_ranks=False)
        sync.synchronise()
        return variables

    for variables in peers.run(worker):
        assert [each.value.tolist() for each in variables] == [[1.0, 5.0], [7.0, 8.0], [0, 0]]
        assert [each.assigned for each in variables] == [1, 0, 1]


def test_variables_are_new_only_once(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        made = variable([rank + 1.0, 5.0])
        sync.add(made, on_all_ranks=False)
        sync.synchronise()
        made.assign([rank + 1.0, 5.0])
        sync.synchronise()
        return made.value

    assert peers.run(worker) == [[1.0, 5.0], [2.0, 5.0]]


def test_a_variable_that_only_one_rank_has_stays_as_it_is(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        own = variable([rank + 3.0, 9.0], f"of {rank}")
        common = variable([rank + 1.0, 5.0], "common")
        for each in (own, common):
            sync.add(each, on_all_ranks=False)
        sync.synchronise()
        return own.value.tolist(), common.value.tolist()

    assert peers.run(worker) == [([3.0, 9.0], [1.0, 5.0]), ([4.0, 9.0], [1.0, 5.0])]


def test_variables_of_a_model_are_matched_by_position(module, variable, peers):
    """Rank 0 alone has created a model, whose variable has the name and shape of the common model's."""

    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        own = [variable([9.0, 9.0], "kernel")] if rank == 0 else []
        common = variable([rank + 1.0, 5.0], "kernel")
        for each in (*own, common):
            sync.add(each, on_all_ranks=False)
        sync.synchronise([common])
        return [each.value.tolist() for each in (*own, common)]

    assert peers.run(worker) == [[[9.0, 9.0], [1.0, 5.0]], [[1.0, 5.0]]]


def test_variables_that_cannot_be_matched_are_a_warning(module, variable, peers, caplog):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        variables = [variable([rank + 1.0, number], "kernel") for number in range(2 - rank)]
        for each in variables:
            sync.add(each, on_all_ranks=False)
        sync.synchronise()
        return [each.value.tolist() for each in variables]

    assert peers.run(worker) == [[[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0]]]
    (record,) = caplog.records
    assert "different numbers of variables of the same name and shape (kernel (2,) kind f)" in record.getMessage()


def test_models_with_different_variables_are_a_warning(module, variable, peers, caplog):
    def worker(rank, collectives):
        weights = [variable([rank + 1.0, 5.0]), variable([rank + 3.0])][: 2 - rank]
        module.VariableSync(collectives).synchronise(weights)
        return [each.value.tolist() for each in weights]

    assert peers.run(worker) == [[[1.0, 5.0], [3.0]], [[1.0, 5.0]]]
    (record,) = caplog.records
    assert "different variables on the workers (rank 0: 2, rank 1: 1)" in record.getMessage()


def test_given_variables_are_compared_even_if_they_are_constant(module, variable, peers):
    def worker(rank, collectives):
        weights = [variable([rank + 0.0, rank + 0.0]), variable([float(rank), 2.0], "text", kind="string")]
        module.VariableSync(collectives).synchronise(weights)
        return [each.value.tolist() for each in weights]

    assert peers.run(worker) == [[[0.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 2.0]]]  # text is not exchanged


def test_a_variable_without_a_value_waits_until_it_has_one(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        late = variable([rank + 1.0, 5.0], initialized=False)
        sync.add(late, on_all_ranks=False)
        sync.synchronise()
        before = late.value.tolist()
        late.is_initialized = lambda: True
        sync.synchronise()
        return before, late.value.tolist()

    assert peers.run(worker) == [([1.0, 5.0], [1.0, 5.0]), ([2.0, 5.0], [1.0, 5.0])]


def test_variables_that_all_ranks_create_together_are_exchanged_at_once(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        made = variable([rank + 1.0, 5.0])
        sync.add(made, on_all_ranks=True)
        return made.value.tolist()

    assert peers.run(worker) == [[1.0, 5.0], [1.0, 5.0]]
    assert peers.meetings == 2  # checksums, and the values that differ


def test_the_exchange_of_variables_that_a_trace_creates_can_wait(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        made = [variable([rank + 1.0, 5.0]), variable([rank + 3.0])]
        with sync.deferred():
            for each in made:
                sync.add(each, on_all_ranks=True)
        before = peers.meetings
        sync.synchronise()
        return before, [each.value.tolist() for each in made]

    assert peers.run(worker) == [(0, [[1.0, 5.0], [3.0]])] * 2
    assert peers.meetings == 2


def test_the_state_of_metrics_is_each_workers_own(module, variable, peers):
    def worker(rank, collectives):
        sync = module.VariableSync(collectives)
        total = variable([rank + 1.0, 5.0], synchronization="on read", aggregation="sum")
        for each in (total, variable([rank + 1.0, 5.0], "mean", synchronization="on read", aggregation="mean")):
            sync.add(each, on_all_ranks=False)
        sync.synchronise([total])
        assert sync.partial_sums() == [total]
        value = total.value.tolist()
        del total, each
        gc.collect()
        assert sync.partial_sums() == []
        return value

    assert peers.run(worker) == [[1.0, 5.0], [2.0, 5.0]]


def test_a_worker_that_is_alone_exchanges_nothing(module, variable):
    sync = module.VariableSync(types.SimpleNamespace(world_size=1))
    sync.add(variable([1.0, 2.0]), on_all_ranks=True)
    sync.synchronise([variable([1.0, 2.0])])


def test_the_variable_inside_those_of_keras_is_found(module, variable):
    inner = variable([1.0])
    assert module.plain_variable(inner) is inner
    assert module.plain_variable(types.SimpleNamespace(_value=inner)) is inner  # Keras 3
    wrapper = variable([1.0], _variable=inner)  # tf_keras, in mixed precision
    wrapper.__class__ = type("AutoCastVariable", (type(inner),), {"__module__": "tf_keras.src.mixed_precision"})
    assert module.plain_variable(wrapper) is module.without_autocast(wrapper) is inner
    assert module.plain_variable("other") == "other"
