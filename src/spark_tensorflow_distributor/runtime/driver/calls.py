"""Decides which calls of ``fit``, ``evaluate`` and ``predict`` the workers make together. Pure: no sockets, no clock.

Every worker announces its calls. A call that the others do not make at the same time is made alone if possible, that
is, if it evaluates or predicts complete data with a complete model. It then has the result that all workers would have
computed together, so a wrong guess costs nothing but time. If a call needs all workers and one of them can no longer
join it, the program is wrong.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...process_group.out_of_step import SAME_CALLS
from ..specs import AWAY_SECONDS

# Wait this long for slower workers, which may be reading data for example, before a call is made alone.
PATIENCE_SECONDS = 3.0
# Wait this long before reporting a conflict: a worker may itself notice that another one has ended, and its error is
# more precise than the driver's.
CONFLICT_SECONDS = 2.0

Answer = Literal["together", "alone"]


@dataclass(frozen=True)
class Call:
    """A call that a worker is about to make, or is making.

    Attributes:
        number: Sequence number among the worker's calls.
        method: The method's name.
        key: Identifies the call; equal on all workers that make the same call.
        line: The line of the program that makes it.
        may_be_alone: Whether the worker can make the call by itself.
        is_nested: Whether it is made during another call, by a callback for example.
        since: When it was announced.
        state: ``"waiting"`` for an answer, or the answer.
    """

    number: int
    method: str
    key: str
    line: str
    may_be_alone: bool
    is_nested: bool
    since: float
    state: str = "waiting"

    def __str__(self) -> str:
        return f"{self.method}, called at {self.line}" if self.line else self.method


class MethodCalls:
    """The calls of all workers.

    Args:
        world_size: Number of ranks.
        are_checked: Whether the workers' collectives detect different calls; a call that needs all workers then does
            not wait here for the others.
    """

    def __init__(self, world_size: int, *, are_checked: bool) -> None:
        self._world_size, self._awaits_all = world_size, not are_checked
        self._calls: dict[int, list[Call]] = {rank: [] for rank in range(world_size)}
        # How many calls each rank has made together with the others.
        self._joined: Counter[int] = Counter()
        self._visits: Counter[tuple[int, str]] = Counter()
        # When each rank last returned to the user's code.
        self._left: dict[int, float] = {}
        # Where, outside of these calls, ranks wait for all others.
        self._barriers: dict[int, str] = {}
        self._announced = 0  # calls without an answer
        self._conflict_since: float | None = None
        self._is_lost = self._was_lost = False
        # When each rank without a connection lost it; when it returns, it reports its calls.
        self._away: dict[int, float] = {}
        # The last answer to each rank, with the number of the call.
        self._last_answers: dict[int, tuple[int, Answer]] = {}

    @property
    def are_all_waiting(self) -> bool:
        """Whether every rank may be waiting for an answer."""
        return self._announced >= self._world_size

    def receive(self, rank: int, message: Mapping[str, Any], now: float) -> None:
        """Handle a worker's announcement: a ``"call"``, the end of one (``"call_left"``), or a ``"barrier"``."""
        calls = self._calls[rank]
        if message["type"] == "barrier":
            self._barriers.pop(rank, None)
            if message["is_entered"]:
                self._barriers[rank] = str(message["text"])
            self._left[rank] = now
        elif message["type"] == "call_left":
            left = [call for call in calls if call.number == message["number"]]
            self._announced -= sum(call.state == "waiting" for call in left)
            self._calls[rank] = [call for call in calls if call not in left]
            self._left[rank] = now
        else:
            calls.append(_call(message, now))
            self._announced += 1
            self._visits[rank, message["key"]] += 1

    def lose(self) -> None:
        """Handle a rank that has never had a connection: from now on, all calls are made together."""
        self._is_lost = True

    def leave(self, rank: int, now: float) -> None:
        """Handle the loss of a rank's connection.

        Until it is back, no call is made alone just because this rank does not seem to join it. If it stays away, all
        calls are made together; the rank itself then does the same.
        """
        self._away[rank] = now

    def restore(self, rank: int, known: Mapping[str, Any] | None, now: float) -> list[tuple[int, int, Answer]]:
        """Handle the return of a rank.

        Args:
            rank: The rank.
            known: Its calls, as its agent reports them: those that are ``open``, how many it has ``joined``, and the
                ``barrier`` that it is in. None if it has not made any.
            now: The time.

        Returns:
            The answers that the rank has not received, as in :meth:`answers`.
        """
        self._away.pop(rank, None)
        if known is None:
            return []
        before = {call.number: call for call in self._calls[rank]}
        number, answer = self._last_answers.get(rank, (-1, "together"))
        calls = [
            _call(each, before[each["number"]].since if each["number"] in before else now) for each in known["open"]
        ]
        lacking = [call for call in calls if call.state == "waiting" and call.number == number]
        self._calls[rank] = [replace(call, state=answer) if call in lacking else call for call in calls]
        self._visits.update((rank, call.key) for call in calls if call.number not in before)
        self._joined[rank] = known["joined"] + (answer == "together") * len(lacking)
        self._barriers.pop(rank, None)
        if known["barrier"] is not None:
            self._barriers[rank] = known["barrier"]
        self._left[rank] = now
        self._announced = sum(call.state == "waiting" for each in self._calls.values() for call in each)
        return [(rank, call.number, answer) for call in lacking]

    def _are_away(self, done: Collection[int]) -> bool:
        """Return whether any rank that may still make calls has no connection."""
        return any(rank not in done for rank in self._away)

    def _are_away_for_long(self, done: Collection[int], now: float) -> bool:
        return any(rank not in done and now - since >= AWAY_SECONDS for rank, since in self._away.items())

    def is_alone(self, rank: int) -> bool:
        """Return whether a rank is making a call by itself."""
        call = self._current(rank)
        return call is not None and call.state == "alone"

    @property
    def are_lost(self) -> bool:
        """Whether some calls were not reported to the driver, so that its answers may be wrong."""
        return self._is_lost or self._was_lost

    def answers(self, done: Collection[int], now: float) -> list[tuple[int, int, Answer]]:
        """Return the rank, number and answer of each call whose answer is now known.

        Args:
            done: The ranks whose function has returned.
            now: The time, by the clock of :meth:`receive`.
        """
        waiting = self._waiting()
        if not waiting:
            return []
        last = [rank for rank, call in waiting.items() if call.may_be_alone and len({*done, rank}) == self._world_size]
        if last:
            return [(rank, self._answer(rank, "alone"), "alone") for rank in last]
        answer: Answer = "together"
        is_lost = self._is_lost or self._are_away_for_long(done, now)
        self._was_lost |= is_lost
        found = [rank for rank, call in waiting.items() if is_lost or not (call.may_be_alone or self._awaits_all)]
        callers = Counter(call.key for call in waiting.values())
        if not found and len(waiting) == self._world_size and len(callers) == 1:
            found = list(waiting)
        if not found and not self._are_away(done):
            # The call with the fewest callers goes first: if the chief alone predicts some rows before all evaluate,
            # the others wait for it.
            order = sorted(
                {call.key: rank for rank, call in reversed(waiting.items()) if call.may_be_alone}.items(),
                key=lambda each: (callers[each[0]], each[1]),
            )
            left = next((key for key, rank in order if self._is_left_alone(rank, done, now)), None)
            found, answer = [rank for rank, call in waiting.items() if call.key == left], "alone"
        return [(rank, self._answer(rank, answer), answer) for rank in found]

    def _answer(self, rank: int, answer: Answer) -> int:
        """Record the answer to the call that a rank is waiting to make; return the call's number."""
        call = self._calls[rank][-1]
        self._calls[rank][-1] = replace(call, state=answer)
        self._announced -= 1
        self._joined[rank] += answer == "together"
        self._last_answers[rank] = call.number, answer
        return call.number

    def conflict(self, done: Collection[int], now: float) -> tuple[int, str] | None:
        """Return the rank of a call that can never be made, and why; None if no such call has lasted long enough."""
        found = None if self.are_lost or self._are_away(done) else self._conflict(done)
        if found is None:
            self._conflict_since = None
        elif self._conflict_since is None:
            self._conflict_since = now
        return found if self._conflict_since is not None and now - self._conflict_since >= CONFLICT_SECONDS else None

    def _conflict(self, done: Collection[int]) -> tuple[int, str] | None:
        """Return the rank that is furthest ahead, and why another rank can no longer join its call; else None."""
        needed: dict[int, int] = {}  # how many calls all ranks must have joined, by the rank that makes such a call
        for rank in range(self._world_size):
            call = self._current(rank)
            if call is not None and call.state != "alone" and not (call.state == "waiting" and call.may_be_alone):
                needed[rank] = self._joined[rank] + (call.state == "waiting")
        if not needed:
            return None
        rank = max(needed, key=lambda each: needed[each])
        call = self._current(rank)
        assert call is not None
        for other in range(self._world_size):
            theirs = self._current(other)
            if self._joined[other] >= needed[rank] or other == rank:
                continue
            if other in done:
                where = f"rank {other} has returned from the training function"
            elif other in self._barriers:
                where = f"rank {other} is in {self._barriers[other]}"
            elif _waits_for_another(theirs, call):
                where = f"rank {other} is in {theirs}"
            else:
                continue
            return rank, f"Rank {rank} is in {call}, but {where}. {SAME_CALLS}"
        return None

    def _current(self, rank: int) -> Call | None:
        return self._calls[rank][-1] if self._calls[rank] else None

    def _waiting(self) -> dict[int, Call]:
        current = {rank: self._current(rank) for rank in range(self._world_size)}
        return {rank: call for rank, call in current.items() if call is not None and call.state == "waiting"}

    def _is_left_alone(self, rank: int, done: Collection[int], now: float) -> bool:
        """Return whether, as far as can be told, some other rank will not join a rank's call."""
        call = self._current(rank)
        assert call is not None
        missing = [
            other
            for other in range(self._world_size)
            if (theirs := self._current(other)) is None or theirs.state != "waiting" or theirs.key != call.key
        ]
        return any(self._does_not_join(other, rank, call, done, now) for other in missing)

    def _does_not_join(self, other: int, rank: int, call: Call, done: Collection[int], now: float) -> bool:
        theirs = self._current(other)
        if other in done or other in self._barriers:
            return True
        if self._visits[rank, call.key] > 1 and not self._visits[other, call.key]:
            return True  # it did not join the last time either
        if theirs is None:
            return now - max(call.since, self._left.get(other, 0.0)) > PATIENCE_SECONDS
        if theirs.state == "alone":
            return False  # it may join afterwards
        if theirs.state == "waiting":
            return True
        if self._joined[other] > self._joined[rank]:
            return True  # it has gone ahead
        # The other rank is in a call that this one has left, and will leave it soon; or in one that contains this call.
        return call.is_nested and now - call.since > PATIENCE_SECONDS


def _call(message: Mapping[str, Any], since: float) -> Call:
    names = ("number", "method", "key", "line", "may_be_alone", "is_nested")
    return Call(**{name: message[name] for name in names}, since=since, state=str(message.get("state", "waiting")))


def _waits_for_another(theirs: Call | None, call: Call) -> bool:
    """Return whether a rank waits to make another call with all ranks; one in a call may be about to leave it."""
    return theirs is not None and theirs.state == "waiting" and not theirs.may_be_alone and theirs.key != call.key
