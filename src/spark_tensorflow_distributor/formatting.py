"""Sizes and exceptions as text, for messages."""


def mebibytes(size: float) -> str:
    """Return a number of bytes as ``"1.5 MiB"``."""
    return f"{size / 2**20:.1f} MiB"


def gibibytes(size: float) -> str:
    """Return a number of bytes as ``"1.5 GiB"``."""
    return f"{size / 2**30:.1f} GiB"


def one_line(error: BaseException) -> str:
    """Return an exception as the last line of a traceback shows it: ``"KeyError: 'name'"``."""
    return f"{type(error).__name__}: {error}"
