"""Cutting a pass into batches."""

import itertools

import numpy as np

from spark_tensorflow_distributor.data.passes import ShardState, batch_bounds, equal_pass, whole_pass


def shard_sizes(total, world_size):
    return [total // world_size + (rank < total % world_size) for rank in range(world_size)]


def batch_sizes(plan):
    """Return the sizes of a pass's batches, as a dataset computes them, and check that they are contiguous."""
    steps = np.arange(plan.steps)
    starts, ends = batch_bounds(steps, plan.steps, plan.rows, plan.batch, np)
    assert [0, *ends[:-1]] == list(starts) or not len(steps)
    return (ends - starts).tolist()


def test_whole_pass_takes_every_row_once_in_the_steps_of_an_equal_pass():
    for total, world_size, batch in itertools.product(range(1, 60), range(1, 5), range(1, 8)):
        equal = equal_pass(total, world_size, batch, drop_remainder=False)
        plans = [whole_pass(rows, total, world_size, batch) for rows in shard_sizes(total, world_size)]
        sizes = [batch_sizes(plan) for plan in plans]
        assert {plan.steps for plan in plans} == {max(equal.steps, 1)}
        assert list(map(sum, sizes)) == shard_sizes(total, world_size)
        assert max(map(max, sizes)) <= batch + 1
        assert min(map(min, sizes)) >= (total >= world_size), (total, world_size, batch, sizes)
        # All ranks agree on whether their batches have a static size.
        is_even = {size for of_rank in sizes for size in of_rank} == {batch}
        assert {plan.is_even for plan in plans} == {is_even}


def test_equal_pass_leaves_out_fewer_rows_than_there_are_workers():
    for total, world_size, batch in itertools.product(range(0, 60), range(1, 5), range(1, 8)):
        plan = equal_pass(total, world_size, batch, drop_remainder=False)
        sizes = batch_sizes(plan)
        assert all(sizes)
        assert set(sizes[:-1]) <= {batch}
        assert 0 <= total - world_size * sum(sizes) < world_size
        assert plan.rows <= total // world_size
        assert plan.is_even == (set(sizes) <= {batch})
        dropped = equal_pass(total, world_size, batch, drop_remainder=True)
        assert dropped.is_even
        assert dropped.steps == total // (batch * world_size)


def orders(state, epochs, length=8, steps_per_epoch=None, opened=1):
    """Return the numbers of the passes that a ``fit`` begins, if every epoch creates some iterators."""
    state.fit = state.new_fit(state.equal, epochs, length, steps_per_epoch)
    state.begin_pass()  # Keras may read a batch to build the model
    found = []
    for epoch in epochs:
        state.fit.begin_epoch(epoch)
        found += [state.begin_pass()[1] for _ in range(opened)]
    state.fit = None
    return found


def new_state(first_pass=0):
    return ShardState("data", 4, whole_pass(17, 33, 2, 2), equal_pass(33, 2, 2, drop_remainder=False), first_pass)


def test_every_fit_continues_the_passes_of_the_one_before_it():
    state = new_state(first_pass=2)
    assert orders(state, range(3)) == [2, 3, 4]
    assert state.begin_pass()[1] == 2  # an evaluation, which a resumed run may not repeat
    assert [orders(state, range(1)) for _ in range(2)] == [[5], [6]]
    assert orders(state, range(2), length=16, opened=2) == [7, 8, 9, 10]  # repeat(2)
    assert orders(state, range(1)) == [11]


def test_a_fit_that_begins_with_a_later_epoch_has_its_passes():
    whole, parts = new_state(), new_state()
    assert orders(whole, range(5)) == orders(parts, range(2)) + orders(parts, range(2, 5))
    assert orders(new_state(), range(2, 5)) == [2, 3, 4]  # in another process


def test_passes_of_fits_with_steps_per_epoch_follow_each_other():
    state = new_state()
    state.fit = state.new_fit(state.equal, range(3), -1, 6)  # 18 steps: more than two passes of 8
    state.fit.begin_epoch(1)
    assert [state.begin_pass()[1] for _ in range(3)] == [0, 1, 2]
    state.fit = state.new_fit(state.equal, range(3), -1, 6)
    assert state.begin_pass()[1] == 3


def test_a_fit_inside_another_one_has_a_new_order_in_every_epoch():
    state = new_state()
    state.fit = state.new_fit(state.equal, range(2), 8, None)
    assert [state.begin_pass()[1] for _ in range(2)] == [0, 1]
