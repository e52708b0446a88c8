"""Cutting a pass into batches."""

import itertools

import numpy as np

from spark_tensorflow_distributor.data.passes import batch_bounds, equal_pass, whole_pass


def shares(total, world_size):
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
        plans = [whole_pass(rows, total, world_size, batch) for rows in shares(total, world_size)]
        sizes = [batch_sizes(plan) for plan in plans]
        assert {plan.steps for plan in plans} == {max(equal.steps, 1)}
        assert list(map(sum, sizes)) == shares(total, world_size)
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
