"""A relay between two ends of a connection, which sees and can change everything that they send to each other."""

import contextlib
import select
import socket
import threading


class Relay:
    """Listens on a port, and relays each connection to the target.

    Args:
        target: The address of the other end.
        change: Called as ``change(direction, data, passed)`` with the data that has arrived and the number of bytes
            passed on before; returns the data to pass on. ``direction`` is ``"up"`` towards the target, otherwise
            ``"down"``.

    Attributes:
        seen: All bytes by direction, before any change.
    """

    def __init__(self, target, change=lambda direction, data, passed: data):
        self._target, self._change = target, change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.seen = {"up": b"", "down": b""}
        self._ends = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def inject(self, direction, data):
        """Send data in the name of one end, on the last connection."""
        self._ends[-1][direction == "down"].sendall(data)

    def close(self):
        for sock in (self._listener, *(end for ends in self._ends for end in ends)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._ends.append((far, near))
            self._threads.append(threading.Thread(target=self._pass, args=(far, near), daemon=True))
            self._threads[-1].start()

    def _pass(self, far, near):
        passed = {"up": 0, "down": 0}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for sock in select.select([far, near], [], [])[0]:
                    direction, other = ("up", far) if sock is near else ("down", near)
                    data = sock.recv(1 << 16)
                    if not data:
                        raise OSError
                    self.seen[direction] += data
                    other.sendall(self._change(direction, data, passed[direction]))
                    passed[direction] += len(data)
        for sock in (far, near):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
