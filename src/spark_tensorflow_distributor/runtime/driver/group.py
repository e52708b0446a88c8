"""The driver's decisions about one launch of the group, message by message. Pure: no sockets, no clock."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..failures import Failure
from ..specs import SILENT_SECONDS
from . import stalls

# (rank, or None for all ranks; message)
Command = tuple[int | None, dict[str, Any]]

# All tasks of a barrier stage start together, so a rank that is this much later than the first one probably cannot
# reach the driver, and is waiting for the others in Spark's allGather.
ALL_GATHER_SECONDS = 8.0
# After the first failure, wait this long for related ones to arrive.
VERDICT_SECONDS = 1.0
# At the end, do not wait longer than this for ranks that lost the channel.
LOST_SECONDS = 10.0
# If other ranks have failed, a shorter silence is enough to suspect a rank.
QUIET_SECONDS = 5.0
# The stacks of all ranks arrive within a second or two.
STACKS_SECONDS = 4.0
# How long the chief may take to pickle its value alone; a value of 1 GB takes seconds.
PICKLE_SECONDS = 60.0


class Group:
    """The state of one launch. Its methods return the commands that follow from each event.

    Args:
        world_size: Number of ranks.
        stall_timeout: Seconds without progress after which the group fails; None for never.

    Attributes:
        members: Address and version of each rank that has joined, by rank.
        connected: Ranks that are connected now.
        ever_connected: Ranks that have ever connected.
        done: Ranks whose function has returned.
        failures: Failures by rank.
        steps: Steps made and position in ``fit``, of each rank that has reported any.
        vitals: The last known state of each trainer's process.
        uses_all_gather: The ranks meet through Spark's allGather.
        stop_reason: Why all ranks were stopped, or None.
    """

    def __init__(self, world_size: int, *, stall_timeout: float | None = None) -> None:
        self.world_size = world_size
        self.members: dict[int, Mapping[str, Any]] = {}
        self.connected: set[int] = set()
        self.ever_connected: set[int] = set()
        self.done: set[int] = set()
        self.failures: dict[int, Failure] = {}
        self.uses_all_gather = False
        self.stop_reason: str | None = None
        self._stall_timeout = stall_timeout
        self._first_join: float | None = None
        self._first_failure: float | None = None
        self._lost_at: dict[int, float] = {}
        self.steps: dict[int, tuple[int, Mapping[str, int] | None]] = {}
        self.vitals: dict[int, Mapping[str, Any]] = {}
        self._progress: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._stalled_at: float | None = None
        self._stacks: dict[int, Mapping[str, Any]] = {}
        self._chief_pickles_since: float | None = None
        self._released = False
        self._facts: dict[int, Any] = {}
        self._forwarded: dict[tuple[int, int, int], dict[str, Any]] = {}

    @property
    def has_met(self) -> bool:
        """Whether all ranks know each other, or are about to without the driver's help."""
        return self.uses_all_gather or len(self.members) == self.world_size

    def connect(self, rank: int, hello: Mapping[str, Any], now: float) -> list[Command]:
        """Handle a connection, the first one or a later one; ``hello`` says how far the rank has got."""
        self.connected.add(rank)
        self.ever_connected.add(rank)
        self._lost_at.pop(rank, None)
        self._progress.setdefault(rank, now)
        commands = self.receive(rank, {**hello, "type": hello.get("state", "hello")}, now)
        commands += self._catch_up(rank, hello)
        if self.stop_reason is not None:
            commands.append((rank, {"type": "stop", "reason": self.stop_reason}))
        elif self._released:
            commands.append((rank, {"type": "release"}))
        return commands

    def disconnect(self, rank: int, now: float) -> None:
        """Handle a lost connection. Training continues without it."""
        self.connected.discard(rank)
        self._lost_at[rank] = now

    def receive(self, rank: int, message: Mapping[str, Any], now: float) -> list[Command]:
        """Handle a message from a rank."""
        kind = message["type"]
        self._heard[rank] = now
        self._note_progress(rank, message, now)
        if kind == "phase" and rank == 0 and message["name"] == "result":
            self._chief_pickles_since = now
        if kind == "join":
            return self._join(rank, message["member"], now)
        if kind == "rows":
            return self._count(rank, message["facts"])
        if kind == "pass":
            return self._forward(message)
        if kind == "stacks":
            self._stacks.setdefault(rank, message)
        if kind == "done":
            self.done.add(rank)
        elif kind == "failed":
            self._fail(replace(Failure.from_json(message["failure"]), seconds=now))
        return self.tick(now)

    def _note_progress(self, rank: int, message: Mapping[str, Any], now: float) -> None:
        kind = message["type"]
        if kind == "step":
            before = self.steps.get(rank)
            self.steps[rank] = (int(message["steps"]), message.get("at"))
            if before == self.steps[rank]:
                return
        elif kind == "alive":
            self.vitals[rank] = message
            return
        elif kind == "log":
            # In fit, only steps count as progress: a library may keep logging while it waits.
            if self._is_in_fit(rank):
                return
        elif kind not in ("phase", "progress", "done", "join", "intake", "rows", "committed", "resumed"):
            return
        self._progress[rank] = now

    def _is_in_fit(self, rank: int) -> bool:
        return self.steps.get(rank, (0, None))[1] is not None

    def _join(self, rank: int, member: Mapping[str, Any], now: float) -> list[Command]:
        self._first_join = now if self._first_join is None else self._first_join
        self.members[rank] = member
        if self.uses_all_gather:
            return [(rank, {"type": "use_all_gather"})]
        if len(self.members) == self.world_size:
            return [(None, {"type": "members", "members": list(self.members.values())})]
        return []

    def _count(self, rank: int, facts: Any) -> list[Command]:
        """Handle the facts about a rank's rows. Given those of all ranks, each rank can plan which rows go where."""
        if rank in self._facts:
            return []
        self._facts[rank] = facts
        return [(None, self._shares())] if len(self._facts) == self.world_size else []

    def _shares(self) -> dict[str, Any]:
        return {"type": "shares", "facts": {str(rank): facts for rank, facts in self._facts.items()}}

    def _forward(self, message: Mapping[str, Any]) -> list[Command]:
        forwarded = {**message, "type": "passed"}
        self._forwarded[forwarded["to"], forwarded["from"], forwarded["frame"]] = forwarded
        return [(forwarded["to"], forwarded)]

    def _catch_up(self, rank: int, hello: Mapping[str, Any]) -> list[Command]:
        """Repeat what may have been lost with an earlier connection; receiving it twice does no harm."""
        commands = self._count(rank, hello["facts"]) if "facts" in hello else []
        for message in hello.get("passed", ()):
            commands += self._forward(message)
        if len(self._facts) == self.world_size:
            commands.append((rank, self._shares()))
            commands += [(rank, rows) for rows in self._forwarded.values() if rows["to"] == rank]
        return commands

    def _fail(self, failure: Failure) -> None:
        self.failures.setdefault(failure.rank, failure)
        if self._first_failure is None and failure.kind != "stopped":
            self._first_failure = failure.seconds

    def tick(self, now: float) -> list[Command]:
        """Return the commands that are due by now."""
        if self.stop_reason is not None or self._released:
            return []
        if self._first_failure is not None:
            accounted = len(self.failures.keys() | self.done) == self.world_size
            if accounted or now - self._first_failure >= VERDICT_SECONDS:
                self._add_suspects(now)
                first = min(self.failures, key=lambda rank: self.failures[rank].seconds)
                return self.stop(f"Stopped because rank {first} failed.")
            return []
        if self._stalled_at is not None:
            return self._end_stall(now)
        if self._is_stalled(now):
            self._stalled_at = now
            return [(None, {"type": "stacks"})]
        silent = self._silent(now)
        if silent:
            return self._declare_lost(silent, now)
        missing = set(range(self.world_size)) - self.done
        if missing == {0} and self.world_size > 1 and self._is_chief_stuck(now):
            return self.stop(
                "Rank 0 has been pickling the value that its function returned for a minute, and all other ranks are "
                "done. A model with BatchNorm or metrics can only be read by all workers together: return the same "
                "value on every rank, or plain arrays (get_weights()) that every rank has computed."
            )
        if self.done and all(now - self._lost_at.get(rank, now) >= LOST_SECONDS for rank in missing):
            self._released = True
            return [(None, {"type": "release"})]
        if not self.has_met and self._first_join is not None and now - self._first_join >= ALL_GATHER_SECONDS:
            self.uses_all_gather = True
            return [(rank, {"type": "use_all_gather"}) for rank in sorted(self.members)]
        return []

    def stop(self, reason: str) -> list[Command]:
        """Stop every worker."""
        if self.stop_reason is not None:
            return []
        self.stop_reason = reason
        return [(None, {"type": "stop", "reason": reason})]

    def _is_chief_stuck(self, now: float) -> bool:
        since = self._chief_pickles_since
        return since is not None and 0 in self.connected and now - since > PICKLE_SECONDS

    def _is_stalled(self, now: float) -> bool:
        """Whether no working rank, or one that is in ``fit``, has made progress for too long."""
        if self._stall_timeout is None or not self.has_met:
            return False
        since = {rank: now - when for rank, when in self._progress.items() if rank not in self.done}
        in_fit = [seconds for rank, seconds in since.items() if self._is_in_fit(rank)]
        longest = max(in_fit, default=0.0)
        return max(longest, min(since.values(), default=0.0)) > self._stall_timeout

    def _end_stall(self, now: float) -> list[Command]:
        """Once all stacks have arrived, or time for them is up, name the rank that is behind."""
        assert self._stalled_at is not None
        awaited = self.connected - self._stacks.keys()
        if awaited and now - self._stalled_at < STACKS_SECONDS:
            return []
        ranks = [rank for rank in range(self.world_size) if rank not in self.done]
        why = f"No progress for stall_timeout={self._stall_timeout:g} s."
        behind, words = stalls.explain(ranks, self.steps, self._stacks, {**self.vitals, **self._stacks})
        for rank in ranks:
            stacks = str(self._stacks.get(rank, {}).get("stacks", ""))
            text = f"{why} {words[rank]}" if rank == behind else words[rank]
            # The rank that is behind comes first, as the root cause.
            self._record_failure(rank, "stalled", text, now - (rank == behind), traceback=stacks)
        return self.stop(f"Stopped. {why} {words[behind]}")

    def _silent(self, now: float) -> list[int]:
        """Return ranks that have vanished. While others make steps no rank has: every step needs all of them."""
        if not self.has_met or self.uses_all_gather:
            return []
        working = self.ever_connected - self.done - self.failures.keys()
        silent = [rank for rank in working if now - self._heard.get(rank, now) > SILENT_SECONDS]
        last_step = max((when for rank, when in self._progress.items() if rank not in silent), default=0.0)
        return sorted(rank for rank in silent if last_step - self._heard[rank] < SILENT_SECONDS / 2)

    def _add_suspects(self, now: float) -> None:
        """After a failure, add the ranks that may have caused it but cannot report it themselves."""
        for rank in sorted(self.ever_connected - self.done - self.failures.keys()):
            silent, state = now - self._heard.get(rank, now), self.vitals.get(rank, {}).get("state")
            if silent > QUIET_SECONDS and self.has_met and not self.uses_all_gather:
                text = f"This worker has been silent for {silent:.0f} s: its host, or the network to it, is down."
                self._record_failure(rank, "lost", text, now - silent)
            elif state in ("stopped", "traced"):
                self._record_failure(
                    rank, "stalled", f"The trainer's process was {state} by a signal or a debugger.", now
                )

    def _record_failure(self, rank: int, kind: str, text: str, when: float, *, traceback: str = "") -> None:
        host = str(self.members.get(rank, {}).get("host", "?"))
        self.failures.setdefault(rank, Failure(rank, host, kind, text, traceback=traceback, seconds=when))

    def _declare_lost(self, ranks: list[int], now: float) -> list[Command]:
        for rank in ranks:
            text = (
                f"This worker has been silent for {SILENT_SECONDS:g} s, and no other worker made a step meanwhile: its "
                "host, or the network to it, is down."
            )
            self._record_failure(rank, "lost", text, self._heard[rank])
        self._first_failure = now - VERDICT_SECONDS
        return self.tick(now)
