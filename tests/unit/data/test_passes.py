"""How a pass is cut into batches."""

import itertools

from spark_tensorflow_distributor.data.passes import equal_pass, whole_pass


def shares(total, world_size):
    return [total // world_size + (rank < total % world_size) for rank in range(world_size)]


def test_every_row_once_in_as_many_steps_on_every_rank():
    for total, world_size, batch in itertools.product(range(1, 60), range(1, 5), range(1, 8)):
        passes = [whole_pass(rows, total, world_size, batch) for rows in shares(total, world_size)]
        assert {each.steps for each in passes} == {-(-total // (batch * world_size))}
        for each, rows in zip(passes, shares(total, world_size), strict=True):
            sizes = [each.size(step) for step in range(each.steps)]
            assert sum(sizes) == rows
            assert max(sizes) <= batch
            if rows >= each.steps and batch > 1:
                assert min(sizes) >= 1, (total, world_size, batch, sizes)
            assert each.start(0) == 0


def test_equal_parts_leave_out_fewer_rows_than_workers():
    for total, world_size, batch in itertools.product(range(0, 60), range(1, 5), range(1, 8)):
        each = equal_pass(total, world_size, batch, drop_remainder=False)
        sizes = [each.size(step) for step in range(each.steps)]
        assert all(sizes)
        assert set(sizes[:-1]) <= {batch}
        assert 0 <= total - world_size * sum(sizes) < world_size
        assert each.rows <= total // world_size
        dropped = equal_pass(total, world_size, batch, drop_remainder=True)
        assert dropped.is_even
        assert dropped.steps == total // (batch * world_size)
