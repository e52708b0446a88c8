"""The disk of an executor that holds a worker's rows and files."""

import errno

# No space is left, the user's quota is exhausted, or the limit for the size of a file (ulimit -f) is reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Return whether an error means that more could not be written to a disk."""
    return isinstance(error, OSError) and error.errno in _FULL
