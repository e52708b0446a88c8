import errno

import pytest

from spark_tensorflow_distributor.data.disk import is_full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_nothing_more_can_be_written_to_a_full_disk(number):
    assert is_full(OSError(number, "reason"))


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "reason"), OSError("full"), ValueError(errno.ENOSPC)])
def test_other_errors(error):
    assert not is_full(error)
