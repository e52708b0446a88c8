"""Sizes and exceptions as text, for messages."""


def mebibytes(size: float) -> str:
    """Return a number of bytes as ``"1.5 MiB"``."""
    return f"{size / 2**20:.1f} MiB"


def gibibytes(size: float) -> str:
    """Return a number of bytes as ``"1.5 GiB"``."""
    return f"{size / 2**30:.1f} GiB"


def type_name(value: object) -> str:
    """Return the name of a value's class, with its module unless that is obvious."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def one_line(error: BaseException) -> str:
    """Return an exception as the last line of a traceback shows it: ``"KeyError: 'name'"``."""
    text = str(error).strip()
    return f"{type_name(error)}: {text}" if text else type_name(error)
