"""Which rank keeps the others waiting, from what each told: steps, state of its process, stacks. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_THREAD = re.compile(r"^(?:Current thread|Thread) .*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
# Where a thread stands that computes or waits in TensorFlow, or waits for work in a pool.
_LIBRARY = re.compile(r"/(?:tensorflow|keras|tf_keras|spark_tensorflow_distributor|concurrent|threading|selectors)\b")


def explain(
    ranks: Sequence[int],
    steps: Mapping[int, tuple[int, Mapping[str, int] | None]],
    stacks: Mapping[int, Mapping[str, Any]],
    vitals: Mapping[int, Mapping[str, Any]],
) -> tuple[int, dict[int, str]]:
    """The rank that is behind, and words for each.

    Args:
        ranks: that still work.
        steps: by rank, the steps made and the place in ``fit``.
        stacks: by rank, those that answered when they were asked for their stacks.
        vitals: by rank, the state of the trainer's process.
    """

    states = {rank: vitals.get(rank, {}).get("state") for rank in ranks}
    stands = {rank: own_code(str(stacks.get(rank, {}).get("stacks", ""))) for rank in ranks}

    def order(rank: int) -> tuple[bool, bool, int, bool]:
        is_running = states[rank] not in ("stopped", "traced")
        return (is_running, rank in stacks, steps.get(rank, (0, None))[0], not stands[rank])

    behind = min(ranks, key=order)
    words = {}
    for rank in ranks:
        place, own, state = _place(steps.get(rank)), stands[rank], states[rank]
        if rank == behind:
            if state in ("stopped", "traced"):
                why = f"its process is {state} (by a signal or a debugger)"
            elif rank not in stacks:
                why = "its host does not answer"
            elif own:
                why = f"it stands in {own}"
            else:
                why = "where it stands is in its stacks"
            words[rank] = f"Rank {rank} is behind{place}: {why}."
        else:
            words[rank] = f"Rank {rank} waits for rank {behind}{place}, in {own or 'TensorFlow'}."
    return behind, words


def own_code(stacks: str) -> str:
    """The innermost line of the user's own that any thread stands in, as words; "" where none does.

    Args:
        stacks: as ``faulthandler`` writes them, the most recent call first.
    """
    for thread in reversed(_THREAD.split(stacks)):
        frames = list(_FRAME.finditer(thread))
        if frames and _is_own(frames[0]["file"]):  # else it computes or waits in a library
            first = frames[0]
            return f"{first['name']} ({first['file']}, line {first['line']})"
    return ""


def _is_own(file: str) -> bool:
    return not _LIBRARY.search(file) and not file.startswith("<frozen")


def _place(made: tuple[int, Mapping[str, int] | None] | None) -> str:
    if made is None or made[1] is None:
        return ""
    return f" (epoch {made[1]['epoch'] + 1}, after step {made[1]['step']})"
