"""Finds the rank that keeps the others waiting, from each rank's steps, process state and stacks. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...formatting import position_text
from ..source_files import is_users_file, without_install_path

_THREAD = re.compile(r"^(?:Current thread|Thread) .*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
_TENSORFLOW = re.compile(r"/(?:site|dist)-packages/(?:tensorflow|keras|tf_keras)/")


def explain(
    ranks: Sequence[int],
    steps: Mapping[int, tuple[int, Mapping[str, int] | None]],
    stacks: Mapping[int, Mapping[str, Any]],
    vitals: Mapping[int, Mapping[str, Any]],
) -> tuple[int, dict[int, str]]:
    """Return the rank that is behind, and a sentence about each rank.

    Args:
        ranks: Ranks that are still working.
        steps: By rank, the number of steps made and the position in ``fit``.
        stacks: By rank, the answers to the request for stacks; a rank that did not answer is missing.
        vitals: By rank, the state of the trainer's process.
    """
    states = {rank: vitals.get(rank, {}).get("state") for rank in ranks}
    texts = {rank: str(answer.get("stacks", "")) for rank, answer in stacks.items()}
    codes = {rank: user_code(texts.get(rank, "")) for rank in ranks}

    def progress(rank: int) -> tuple[bool, bool, int, bool]:
        code = codes[rank]
        is_running = states[rank] not in ("stopped", "traced")
        return (is_running, rank in stacks, steps.get(rank, (0, None))[0], code is None or code.in_tensorflow)

    behind = min(ranks, key=progress)
    is_clear = len(ranks) > 1 and any(progress(rank) != progress(behind) for rank in ranks)
    sentences = {}
    for rank in ranks:
        code, step = codes[rank], _step(steps.get(rank))
        if states[rank] in ("stopped", "traced"):
            what = f"its process is {states[rank]} (by a signal or a debugger)"
        elif rank not in stacks:
            what = "its host does not answer"
        elif code is not None:
            what = f"it is at {code}"
        else:
            what = "see its stacks" if texts[rank] else "it did not write its stacks"
        if not is_clear:
            sentences[rank] = f"Rank {rank}{step}: {what}."
        elif rank == behind:
            sentences[rank] = f"Rank {rank} is behind{step}: {what}."
        else:
            sentences[rank] = f"Rank {rank} is waiting for rank {behind}{step}: {what}."
    if len(ranks) > 1 and not is_clear:
        sentences[behind] = f"No rank is clearly behind. {sentences[behind]}"
    return behind, sentences


class UserCode(NamedTuple):
    """The line of the user's code that a thread is at.

    Attributes:
        function: Name of the function.
        file: Its file.
        line: Number of the line.
        library: File of the library that the line is calling, or ``""``.
        in_tensorflow: Whether that call leads into TensorFlow or Keras, where a rank waits for the others.
        from_tensorflow: Whether TensorFlow or Keras called the function.
    """

    function: str
    file: str
    line: str
    library: str
    in_tensorflow: bool
    from_tensorflow: bool

    def __str__(self) -> str:
        return f"{self.function} ({self.file}, line {self.line})" + (f", in {self.library}" if self.library else "")


def user_code(stacks: str) -> UserCode | None:
    """Return the innermost line of the user's code in the main thread, else in another thread.

    While the main thread waits in TensorFlow, a function that TensorFlow is calling in another thread, such as the
    generator of a dataset, takes precedence: the main thread may be waiting for it.

    Args:
        stacks: The text that ``faulthandler`` writes: the newest thread first and the main thread last.
    """
    threads = [_innermost(thread) for thread in _THREAD.split(stacks)]
    main = threads.pop()
    if main is not None and not main.in_tensorflow:
        return main
    others = [code for code in threads if code is not None]
    callbacks = (code for code in others if code.from_tensorflow and not code.in_tensorflow)
    return next(callbacks, None) or main or next(iter(others), None)


def _innermost(thread: str) -> UserCode | None:
    frames = list(_FRAME.finditer(thread))
    if frames and (frames[-1]["file"], frames[-1]["name"]) == ("<string>", "<module>"):
        frames.pop()  # the trainer's own start, `python -c`
    files = [frame["file"] for frame in frames]
    for number, frame in enumerate(frames):
        if is_users_file(frame["file"]):
            return UserCode(
                frame["name"],
                frame["file"],
                frame["line"],
                library=without_install_path(files[0]) if number else "",
                in_tensorflow=any(map(_TENSORFLOW.search, files[:number])),
                from_tensorflow=any(map(_TENSORFLOW.search, files[number:])),
            )
    return None


def _step(made: tuple[int, Mapping[str, int] | None] | None) -> str:
    if made is None or made[1] is None:
        return ""
    return f" ({position_text(made[1])})"
