"""Formats sizes, names and exceptions for messages, and makes text safe to show in a terminal or to keep.

Text from workers may contain anything that their programs, data or files contain. A terminal obeys escape sequences:
they can overwrite other lines, change the window's title or the clipboard, and even enter text as if the user typed it.
"""

import re
import traceback
from collections.abc import Mapping, Sequence

# Group 1: colours, cursor movements, and the \r of \r\n; they are removed. Group 2: all other control characters except
# tabs and newlines; they are shown as escapes.
_CONTROLS = re.compile(r"(\x1b\[[0-?]*[ -/]*[@-~]|\r(?=\n))|([\x00-\x08\x0b-\x1f\x7f-\x9f])")


def printable(text: str) -> str:
    """Return text without colours and cursor movements; other control characters become escapes."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[2]):02x}" if found[2] else "", text)


def printable_line(text: str) -> str:
    """Return :func:`printable` text as a single line, so that it cannot pass for several lines."""
    return printable(text).replace("\n", "\\n")


def printable_exception(error: BaseException) -> BaseException | None:
    """Return an exception that Python can print safely, or None.

    Its arguments and notes are changed in place. The result is None if that does not make its text safe.
    """
    if _is_printed_safely(error):
        return error
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        notes[:] = [printable(each) if isinstance(each, str) else each for each in notes]
    error.args = tuple(printable(each) if isinstance(each, str) else each for each in error.args)
    if isinstance(error, OSError) and isinstance(error.strerror, str):
        error.strerror = printable(error.strerror)
    return error if _is_printed_safely(error) else None


def _is_printed_safely(error: BaseException) -> bool:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # its own methods can raise anything
        return False
    return _CONTROLS.search(text) is None


def mebibytes(size: float) -> str:
    """Return a number of bytes as ``"1.5 MiB"``."""
    return f"{size / 2**20:.1f} MiB"


def gibibytes(size: float) -> str:
    """Return a number of bytes as ``"1.5 GiB"``."""
    return f"{size / 2**30:.1f} GiB"


def amount(size: float) -> str:
    """Return a number of bytes in GiB if it is at least one, else in MiB."""
    return gibibytes(size) if size >= 1 << 30 else mebibytes(size)


def rank_list(ranks: Sequence[int]) -> str:
    """Return ``"rank 3"`` or ``"ranks 0, 1, 3"``; if there are more than ten ranks, only the first ten are listed."""
    shown = ", ".join(map(str, ranks[:10])) + (", ..." if len(ranks) > 10 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def position_text(position: Mapping[str, int], *, of_call: bool = False) -> str:
    """Describe a position in ``fit``: ``"epoch 3, after step 17"``, or ``"fit 2, epoch 3, ..."`` after the first call.

    Calls and epochs are counted from 1, as Keras does; the step is the number of completed ones in the epoch.

    Args:
        position: ``fit``, ``epoch`` and ``step``, counted from 0.
        of_call: Return ``"fit() 1 at epoch 3, step 17"`` instead, which says where a call resumes.
    """
    fit, epoch, step = position["fit"] + 1, position["epoch"] + 1, position["step"]
    if of_call:
        return f"fit() {fit} at epoch {epoch}, step {step}"
    return ("" if fit == 1 else f"fit {fit}, ") + f"epoch {epoch}, after step {step}"


def type_name(value: object) -> str:
    """Return the name of a value's class, with its module unless that is obvious."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def one_line(error: BaseException, *, with_module: bool = True) -> str:
    """Return an exception as in the last line of a traceback: ``"KeyError: 'name'"``.

    Args:
        error: The exception.
        with_module: Whether to name its class as :func:`type_name` does, rather than without the module.
    """
    text, name = str(error).strip(), type_name(error) if with_module else type(error).__name__
    return f"{name}: {text}" if text else name


def keras_cause(error: BaseException) -> str:
    """Return what went wrong when Keras loaded a model, without the configs of all that it is part of."""
    return one_line(error).rpartition("Exception encountered: ")[2]


def first_line(text: str, longest: int = 160) -> str:
    """Return the first line, shortened."""
    line = text.strip().split("\n")[0]
    return line if len(line) <= longest else line[: longest - 1] + "…"


def a_type(value: object) -> str:
    """Return the name of a value's class with its article: ``"an int"``, ``"a DataFrame"``."""
    return "None" if value is None else with_article(type(value).__name__)


def with_article(name: str) -> str:
    """Return the name of a class with its article."""
    # The article follows the sound (a unit, a user). Names with a silent h are not worth a rule.
    vowel = name[:1].lower() in "aeiou" and not name.lower().startswith(("uni", "use", "uti", "eu", "one"))
    return f"{'an' if vowel else 'a'} {name}"


def sentence(quoted: object) -> str:
    """Return a quoted text or exception, with a full stop unless it already ends like a sentence."""
    text = str(quoted).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
