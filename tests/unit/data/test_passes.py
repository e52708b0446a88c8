"""Cutting a pass into batches."""

import itertools

import numpy as np

from spark_tensorflow_distributor.data.passes import batch_bounds, equal_pass, whole_pass


def shares(total, world_size):
    return [total // world_size + (rank < total % world_size) for rank in range(world_size)]


def batch_sizes(plan, extra_steps=0):
    """The sizes of a pass's batches, by the function that cuts them in a dataset; they must join without a gap."""
    steps = np.arange(plan.steps + extra_steps)
    starts, ends = batch_bounds(steps, plan.steps, plan.rows, plan.shift, plan.batch, np)
    assert [0, *ends[:-1]] == list(starts) or not len(steps)
    return (ends - starts).tolist()


def test_whole_pass_takes_every_row_once_in_equally_many_steps_on_every_rank():
    for total, world_size, batch in itertools.product(range(1, 60), range(1, 5), range(1, 8)):
        plans = [whole_pass(rows, total, world_size, batch) for rows in shares(total, world_size)]
        assert {plan.steps for plan in plans} == {-(-total // (batch * world_size))}
        for plan, rows in zip(plans, shares(total, world_size), strict=True):
            sizes = batch_sizes(plan)
            assert sum(sizes) == rows
            assert max(sizes) <= batch
            if rows >= plan.steps and batch > 1:
                assert min(sizes) >= 1, (total, world_size, batch, sizes)


def test_equal_pass_leaves_out_fewer_rows_than_there_are_workers():
    for total, world_size, batch in itertools.product(range(0, 60), range(1, 5), range(1, 8)):
        plan = equal_pass(total, world_size, batch, drop_remainder=False)
        sizes = batch_sizes(plan)
        assert all(sizes)
        assert set(sizes[:-1]) <= {batch}
        assert 0 <= total - world_size * sum(sizes) < world_size
        assert plan.rows <= total // world_size
        assert batch_sizes(plan, extra_steps=2) == [*sizes, 0, 0]
        dropped = equal_pass(total, world_size, batch, drop_remainder=True)
        assert dropped.is_even
        assert dropped.steps == total // (batch * world_size)
