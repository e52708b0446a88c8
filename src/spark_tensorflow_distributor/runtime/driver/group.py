"""The driver's decisions about one launch of the group, message by message. Pure: no sockets, no clock."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...process_group.out_of_step import OutOfStepError
from ..failures import Failure
from ..specs import SILENT_SECONDS, heartbeat_seconds
from ..wire import to_columns
from . import stalls
from .calls import Answer, MethodCalls
from .progress_watch import SUSPENDED, ProgressWatch
from .shard_balance import Command, ShardBalance

# All tasks of a barrier stage start together, so a rank that is this much later than the first one may be unable to
# reach the driver, and is then waiting for the others in Spark's allGather. If it was only late, the detour costs one
# second: the ranks exchange which of them have a channel.
ALL_GATHER_SECONDS = 15.0
# After the first failure, wait this long for related ones to arrive.
VERDICT_SECONDS = 1.0
# At the end, do not wait longer than this for ranks that lost the channel.
LOST_SECONDS = 10.0
# If other ranks have failed, a shorter silence is enough to suspect a rank: this many heartbeats.
QUIET_HEARTBEATS = 2.5
# The stacks of all ranks arrive within a second or two.
STACKS_SECONDS = 4.0
# Time limit for the chief to pickle its value alone; a value of 1 GB takes seconds.
PICKLE_SECONDS = 60.0
_CAUSE = "its host, or the network to it, is down"
# With up to this many ranks, every announced call is handled immediately; with more, at the next tick or once all wait.
_SMALL_WORLD = 64


class Group:
    """The state of one launch. Its methods return the commands that follow from each event.

    Args:
        world_size: Number of ranks.
        stall_timeout: Seconds without progress after which the group fails; None for never.
        chief_may_need_others: Whether reading variables may be a collective operation, so that a chief that takes long
            to pickle may be waiting for the other ranks.

    Attributes:
        members: Address and version of each rank that has joined, by rank.
        connected: Ranks that are connected now.
        ever_connected: Ranks that have ever connected.
        done: Ranks whose function has returned.
        failures: Failures by rank.
        progress: When each rank last made progress.
        uses_all_gather: Whether the ranks exchange their addresses through Spark's allGather.
        stop_reason: Why all ranks were stopped, or None.
    """

    def __init__(
        self, world_size: int, *, stall_timeout: float | None = None, chief_may_need_others: bool = True
    ) -> None:
        # The library's own collectives, with which the chief needs no other rank, detect different calls.
        self._calls = MethodCalls(world_size, are_checked=not chief_may_need_others)
        self.world_size = world_size
        self._chief_may_need_others = chief_may_need_others
        self.members: dict[int, Mapping[str, Any]] = {}
        self.connected: set[int] = set()
        self.ever_connected: set[int] = set()
        self.done: set[int] = set()
        self.failures: dict[int, Failure] = {}
        self._ended: set[int] = set()  # ranks that are done or have failed
        self.uses_all_gather = False
        self.stop_reason: str | None = None
        self._stall_timeout = stall_timeout
        self._first_join: float | None = None
        self._first_failure: float | None = None
        self._lost_at: dict[int, float] = {}
        self.progress = ProgressWatch()
        self._heard: dict[int, float] = {}
        self._stalled_at: float | None = None
        self._stacks: dict[int, Mapping[str, Any]] = {}
        self._chief_pickles_since: float | None = None
        self._released = False
        self._has_met = False
        self._blocked: dict[int, float] = {}  # when a rank stopped reading the driver's messages
        self._shard_balance = ShardBalance(world_size)
        self._quiet_seconds = QUIET_HEARTBEATS * heartbeat_seconds(world_size)

    @property
    def has_met(self) -> bool:
        """Whether all ranks have each other's addresses, or will exchange them without the driver."""
        return self._has_met

    def meet_without_driver(self) -> None:
        """Note that the workers are running, but that none of them can reach the driver."""
        self.uses_all_gather = self._has_met = True

    def connect(self, rank: int, hello: Mapping[str, Any], now: float) -> list[Command]:
        """Handle a connection, the first one or a later one; ``hello`` says how far the rank has progressed."""
        self.connected.add(rank)
        self.ever_connected.add(rank)
        self._lost_at.pop(rank, None)
        self.progress.begin(rank, now)
        self._blocked.pop(rank, None)
        commands = self._call_commands(self._calls.restore(rank, hello.get("calls"), now))
        commands += self.receive(rank, {**hello, "type": hello.get("state", "hello")}, now)
        commands += self._shard_balance.catch_up(rank, hello)
        if self.stop_reason is not None:
            commands.append((rank, {"type": "stop", "reason": self.stop_reason}))
        elif self._released:
            commands.append((rank, {"type": "release"}))
        return commands

    def disconnect(self, rank: int, now: float) -> None:
        """Handle a lost connection. Training continues without it."""
        self.connected.discard(rank)
        self._lost_at[rank] = now
        self._calls.leave(rank, now)

    def block(self, rank: int, since: float) -> None:
        """Note that a rank does not read the driver's messages; it then counts as silent, even if it sends some."""
        self._blocked[rank] = since

    def unblock(self, rank: int) -> None:
        """Note that a rank reads again."""
        self._blocked.pop(rank, None)

    def receive(self, rank: int, message: Mapping[str, Any], now: float) -> list[Command]:
        """Handle a message from a rank. This takes constant time; :meth:`tick` does what takes longer."""
        kind = message["type"]
        self._heard[rank] = now
        waiting = set(range(self.world_size)) - self.done if kind == "step" and self._calls.is_alone(rank) else ()
        self.progress.note(rank, message, now, waiting=waiting)
        if kind == "phase" and rank == 0 and message["name"] == "result":
            self._chief_pickles_since = now
        if kind == "join":
            return self._join(rank, message["member"], now)
        if kind in ("call", "call_left", "barrier"):
            if len(self.ever_connected) < self.world_size:
                self._calls.lose()  # some ranks cannot report their calls
            self._calls.receive(rank, message, now)
            return self.tick(now) if self.world_size <= _SMALL_WORLD or self._calls.are_all_waiting else []
        if kind == "met":
            self._has_met = True
        elif kind == "rows":
            return self._shard_balance.count(rank, message["facts"])
        elif kind == "pass":
            return self._shard_balance.forward(message)
        elif kind == "stacks":
            self._stacks.setdefault(rank, message)
            return self.tick(now) if len(self._stacks) >= len(self.connected) else []
        elif kind == "done":
            self.done.add(rank)
            self._ended.add(rank)
        elif kind == "failed":
            self._fail(replace(Failure.from_json(message["failure"]), seconds=now))
        else:
            return []
        return self.tick(now) if len(self._ended) == self.world_size else []

    def _join(self, rank: int, member: Mapping[str, Any], now: float) -> list[Command]:
        self._first_join = now if self._first_join is None else self._first_join
        self.members[rank] = member
        if self.uses_all_gather:
            return [(rank, {"type": "use_all_gather"})]
        if len(self.members) == self.world_size:
            self._has_met = True
            return [(None, {"type": "members", "members": to_columns(list(self.members.values()))})]
        return []

    def _fail(self, failure: Failure) -> None:
        self.failures.setdefault(failure.rank, failure)
        self._ended.add(failure.rank)
        if self._first_failure is None and failure.kind != "stopped":
            self._first_failure = failure.seconds

    def tick(self, now: float) -> list[Command]:
        """Return the commands that are due by now. Call this several times a second."""
        if self.stop_reason is not None:
            return []
        if self._released:  # a rank whose connection was lost may still be at work
            return self._answer_calls(now)
        if self._first_failure is not None:
            if len(self._ended) == self.world_size or now - self._first_failure >= VERDICT_SECONDS:
                self._add_suspects(now)
                first = min(self.failures, key=lambda rank: self.failures[rank].seconds)
                return self.stop(f"Stopped because rank {first} failed.")
            return []
        if answers := self._answer_calls(now):
            return answers
        if (conflict := self._calls.conflict(self.done, now)) is not None:
            return self._declare_conflict(*conflict, now)
        if self._stalled_at is not None:
            return self._end_stall(now)
        if self._is_stalled(now):
            self._stalled_at = now
            return [(None, {"type": "stacks"})]
        silent = self._silent(now)
        if silent:
            return self._declare_lost(silent, now)
        suspended = self._suspended(now)
        if suspended:
            return self._declare_suspended(suspended, now)
        missing = set(range(self.world_size)) - self.done
        if missing == {0} and self._chief_may_need_others and self._is_chief_stuck(now):
            return self.stop(
                "Rank 0 has been pickling the value that its function returned for a minute, and all other ranks are "
                "done. A model with BatchNorm or metrics can only be read by all workers together: return the same "
                "value on every rank, or plain arrays (get_weights()) that every rank has computed."
            )
        if self.done and all(now - self._lost_at.get(rank, now) >= LOST_SECONDS for rank in missing):
            self._released = True
            return [(None, {"type": "release"})]
        if not self.has_met and not self.uses_all_gather and self._waited(now) >= ALL_GATHER_SECONDS:
            self.uses_all_gather = True
            return [(rank, {"type": "use_all_gather"}) for rank in sorted(self.members)]
        return []

    def _answer_calls(self, now: float) -> list[Command]:
        return self._call_commands(self._calls.answers(self.done, now))

    @staticmethod
    def _call_commands(answers: list[tuple[int, int, Answer]]) -> list[Command]:
        return [(rank, {"type": "call_answer", "number": number, "how": how}) for rank, number, how in answers]

    @property
    def are_calls_lost(self) -> bool:
        """Whether the workers may have been told to make different calls, because some calls were not reported."""
        return self._calls.are_lost

    def _waited(self, now: float) -> float:
        """Return how long ranks have been waiting for others."""
        return 0.0 if self._first_join is None else now - self._first_join

    def stop(self, reason: str) -> list[Command]:
        """Stop every worker."""
        if self.stop_reason is not None:
            return []
        self.stop_reason = reason
        return [(None, {"type": "stop", "reason": reason})]

    def _is_chief_stuck(self, now: float) -> bool:
        since = self._chief_pickles_since
        return since is not None and self.world_size > 1 and 0 in self.connected and now - since > PICKLE_SECONDS

    def _is_stalled(self, now: float) -> bool:
        """Return whether no working rank has made progress for too long, or a rank in ``fit`` has not."""
        if self._stall_timeout is None or not self.has_met:
            return False
        return self.progress.stalled_for(self.done, now) > self._stall_timeout

    def _end_stall(self, now: float) -> list[Command]:
        """Once all stacks have arrived or timed out, name the rank that is behind."""
        assert self._stalled_at is not None
        awaited = self.connected - self._stacks.keys()
        if awaited and now - self._stalled_at < STACKS_SECONDS:
            return []
        ranks = [rank for rank in range(self.world_size) if rank not in self.done]
        why = f"No progress for stall_timeout={self._stall_timeout:g} s."
        behind, words = stalls.explain(
            ranks, self.progress.steps, self._stacks, {**self.progress.vitals, **self._stacks}
        )
        for rank in ranks:
            stacks = str(self._stacks.get(rank, {}).get("stacks", ""))
            text = f"{why} {words[rank]}" if rank == behind else words[rank]
            # The rank that is behind comes first, as the root cause.
            self._record_failure(rank, "stalled", text, now - (rank == behind), traceback=stacks)
        return self.stop(f"Stopped. {why} {words[behind]}")

    def _silent(self, now: float) -> list[int]:
        """Return the ranks that have vanished: none while others complete steps, because every step needs all ranks."""
        if not self._has_met:
            return []
        working = self.ever_connected - self._ended
        silent = {rank for rank in working if now - self._last_sign(rank, now) > SILENT_SECONDS}
        if not silent:
            return []
        last_step = self.progress.last_of_others(silent)
        return sorted(rank for rank in silent if now - max(self._last_sign(rank, now), last_step) > SILENT_SECONDS)

    def _last_sign(self, rank: int, now: float) -> float:
        """Return when the connection to a rank was last seen to work in both directions."""
        return min(self._heard.get(rank, now), self._blocked.get(rank, now))

    def _suspended(self, now: float) -> list[int]:
        """Return the ranks whose trainers have been suspended for too long while no other rank completed a step."""
        if self.world_size == 1:  # no other rank waits for one that is being debugged
            return []
        since = {rank: when for rank, when in self.progress.suspended_since.items() if rank not in self.done}
        if not since:
            return []
        last_step = self.progress.last_of_others(since)
        return sorted(rank for rank, when in since.items() if now - max(when, last_step) > SILENT_SECONDS)

    def _declare_conflict(self, rank: int, text: str, now: float) -> list[Command]:
        host = str(self.members.get(rank, {}).get("host", "?"))
        self._fail(
            Failure.from_exception(rank, host, "exception", OutOfStepError(text), with_traceback=False, seconds=now)
        )
        return self.tick(now)

    def _declare_suspended(self, ranks: list[int], now: float) -> list[Command]:
        for rank in ranks:
            self._record_suspension(rank, now)
        self._first_failure = now - VERDICT_SECONDS
        return self.tick(now)

    def _record_suspension(self, rank: int, now: float) -> None:
        state = self.progress.vitals[rank]["state"]
        seconds = now - self.progress.suspended_since.get(rank, now)
        text = f"The trainer's process has been {state} by a signal or a debugger for {seconds:.0f} s."
        self._record_failure(rank, "stalled", text, now)

    def _add_suspects(self, now: float) -> None:
        """After a failure, add the ranks that may have caused it but cannot report it themselves."""
        for rank in sorted(self.ever_connected - self._ended):
            silent, state = now - self._last_sign(rank, now), self.progress.vitals.get(rank, {}).get("state")
            if silent > self._quiet_seconds and self._has_met:
                text = f"{self._silence(rank, silent)}: {_CAUSE}."
                self._record_failure(rank, "lost", text, now - silent)
            elif state in SUSPENDED:
                self._record_suspension(rank, now)

    def _silence(self, rank: int, seconds: float) -> str:
        if rank in self._blocked:
            return f"This worker has not read the driver's messages for {seconds:.0f} s"
        return f"This worker has been silent for {seconds:.0f} s"

    def _record_failure(self, rank: int, kind: str, text: str, when: float, *, traceback: str = "") -> None:
        host = str(self.members.get(rank, {}).get("host", "?"))
        self.failures.setdefault(rank, Failure(rank, host, kind, text, traceback=traceback, seconds=when))
        self._ended.add(rank)

    def _declare_lost(self, ranks: list[int], now: float) -> list[Command]:
        for rank in ranks:
            text = f"{self._silence(rank, SILENT_SECONDS)}, and no other worker completed a step: {_CAUSE}."
            self._record_failure(rank, "lost", text, self._last_sign(rank, now))
        self._first_failure = now - VERDICT_SECONDS
        return self.tick(now)
