"""The trainer's connection to its agent."""

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from ...data.layout import ShardLayout
from ..wire import Message, frame, receive, receive_files

# How long the workers wait for the callbacks on the driver before they begin the next epoch.
_CALLBACK_SECONDS = 10.0
_POLL_SECONDS = 0.2


class Control:
    """Sends messages to the agent, and waits for its answers.

    Args:
        sock: One end of a pair of local sockets.
        waits_for_callbacks: Whether the run has callbacks, which may stop training after an epoch.
    """

    def __init__(self, sock: socket.socket, *, waits_for_callbacks: bool = False) -> None:
        self._socket = sock
        self._lock = threading.Lock()  # Keras may report progress from another thread
        self._waits_for_callbacks = waits_for_callbacks
        self._receiving = threading.Lock()
        self._asked = self._answered = 0
        self._stops_all = False
        self._stopped_fits: set[int | None] = set()
        self._asking = threading.Lock()
        self._calls = 0
        self._answers: dict[int, str] = {}  # how to make calls, by their numbers
        sock.setblocking(True)

    def send(self, message: dict[str, Any]) -> None:
        # If the agent is gone, this process is about to be killed, and the message has no recipient.
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(frame(message))

    def warn(self, text: str) -> None:
        """Show a warning on the driver."""
        self.send({"type": "warning", "text": text})

    def phase(self, name: str) -> None:
        """Report that a phase begins."""
        self.send({"type": "phase", "name": name, "time": time.time()})

    def wait_for_data(self) -> tuple[list[ShardLayout], list[int]]:
        """Wait for this worker's rows; return their layouts, and the descriptors of their files."""
        self.phase("data")
        while True:
            message, descriptors = receive_files(self._socket)
            self._note(message)
            if message["type"] == "data":
                plan, *files = descriptors
                with os.fdopen(plan, "rb") as file:
                    file.seek(0)
                    return [ShardLayout.from_json(each) for each in json.load(file)], files

    def ask(self, call: Mapping[str, Any]) -> tuple[int, str]:
        """Announce a call that the workers may make together, and wait for the driver's decision.

        Returns:
            The call's number, for :meth:`leave`; and ``"together"`` or ``"alone"``.
        """
        with self._asking:
            self._calls += 1
            number = self._calls
            self.send({"type": "call", "number": number, **call})
            while number not in self._answers:
                self._receive(_POLL_SECONDS)  # another thread may receive the answer
            return number, self._answers.pop(number)

    def leave(self, number: int) -> None:
        """Announce that a call has ended."""
        self.send({"type": "call_left", "number": number})

    @contextlib.contextmanager
    def in_barrier(self, method: str, line: str) -> Iterator[None]:
        """Announce that, in this context, this worker waits for all others in Spark's barrier.

        Args:
            method: The method of BarrierTaskContext.
            line: The line of the program that calls it.
        """
        message = {"type": "barrier", "text": f"BarrierTaskContext.{method}, called at {line}"}
        self.send({**message, "is_entered": True})
        try:
            yield
        finally:
            self.send({**message, "is_entered": False})

    @contextlib.contextmanager
    def forming(self) -> Iterator[None]:
        """Let the agent limit how long TensorFlow waits for the other workers in this context."""
        self.send({"type": "forming", "is_entered": True})
        try:
            yield
        finally:
            self.send({"type": "forming", "is_entered": False})

    def wait_for_release(self) -> bool:
        """Wait until all workers have returned; return False if the agent is gone."""
        with contextlib.suppress(OSError, EOFError), self._asking:  # a thread may still be in a call
            while receive(self._socket)["type"] != "release":
                pass
            return True
        return False

    def end_epoch(self, entry: dict[str, Any]) -> None:
        """Report an epoch, and give the run's callbacks time to decide whether another epoch follows."""
        message = {"type": "epochs", "entries": [entry]}
        if not self._waits_for_callbacks:
            self.send(message)
            return
        self._asked += 1
        self.send({**message, "question": self._asked})
        end = time.monotonic() + _CALLBACK_SECONDS
        while self._answered < self._asked and self._receive(end - time.monotonic()):
            pass

    def should_stop(self, fit: int | None) -> bool:
        """Return whether the driver has asked to end a ``fit``, or a custom loop (None), without waiting."""
        while self._receive(0):
            pass
        return self._stops_all or fit in self._stopped_fits

    def _receive(self, seconds: float) -> bool:
        """Handle the next message; return False if none arrives within ``seconds``."""
        with self._receiving, contextlib.suppress(OSError, EOFError):
            if select.select([self._socket], [], [], max(0.0, seconds))[0]:
                self._note(receive(self._socket))
                return True
        return False

    def _note(self, message: Message) -> None:
        if message["type"] == "answer":
            self._answered = int(message["question"])
        elif message["type"] == "call_answer":
            self._answers[int(message["number"])] = str(message["how"])
        elif message["type"] == "stop_training":
            self._stops_all = message["stops"]["all"]
            self._stopped_fits.update(message["stops"]["fits"])

    def send_file(self, message: dict[str, Any], file: BinaryIO) -> None:
        """Send a message with an open file."""
        with contextlib.suppress(OSError), self._lock:
            socket.send_fds(self._socket, [frame({**message, "files": 1})], [file.fileno()])
