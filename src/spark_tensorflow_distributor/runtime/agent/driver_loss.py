"""Decides what a worker does after losing the driver's channel. Pure: no sockets, no clock."""

RETRY_SECONDS = 1.0
# A failed worker waits this long for the driver's verdict; the driver itself waits about a second for other failures.
AWAIT_VERDICT_SECONDS = 10.0
# A worker whose function has ended waits this long for its peers after losing the driver.
STAY_SECONDS = 10.0
# A worker that has lost the driver and makes no progress for this long is cut off: its host's network is down, or the
# driver and the other workers have ended.
ISOLATED_SECONDS = 60.0
# Under Spark Connect, a driver that refuses connections for this long counts as dead.
DEAD_DRIVER_SECONDS = 5.0


class DriverLossPolicy:
    """Decides when to reconnect, how long to wait for the driver, and when to give up.

    Args:
        driver_is_client: See ``TaskSpec``.
    """

    def __init__(self, *, driver_is_client: bool) -> None:
        self._driver_is_client = driver_is_client
        self._lost_since: float | None = None
        self._next_attempt = 0.0

    def should_reconnect(self, now: float) -> bool:
        """Return whether a worker without a connection should try again now."""
        if now < self._next_attempt:
            return False
        if self._lost_since is None:
            self._lost_since = now
        return True

    def seconds_lost(self, now: float) -> float:
        """Return how long the driver has been out of reach, in seconds; 0 while there is a connection."""
        return 0.0 if self._lost_since is None else now - self._lost_since

    def on_reconnected(self) -> None:
        self._lost_since = None

    def on_connect_failed(self, now: float, refused_since: float | None, last_activity: float) -> str | None:
        """Handle a failed attempt to reconnect.

        Args:
            now: The time.
            refused_since: When the driver's host began to refuse connections; None if it does not answer at all.
            last_activity: When the trainer last printed or reported anything.

        Returns:
            The reason to stop this worker, or None.
        """
        self._next_attempt = now + RETRY_SECONDS
        if self._driver_is_client and refused_since is not None and now - refused_since > DEAD_DRIVER_SECONDS:
            return "The driver has ended."
        if self._lost_since is not None and now - max(self._lost_since, last_activity) > ISOLATED_SECONDS:
            return f"The driver cannot be reached, and training has made no progress for {ISOLATED_SECONDS:g} s."
        return None

    def should_wait_for_verdict(self, now: float, ended_at: float, *, has_failed: bool, has_exited: bool) -> bool:
        """Return whether a worker whose function has ended should wait for the driver to release or stop it.

        After a failure it waits so that the driver can collect the failures of its peers. After a return it waits
        until all workers have returned, because its peers still need its trainer.

        Args:
            now: The time.
            ended_at: When the function ended.
            has_failed: Whether the worker failed.
            has_exited: Whether the trainer's process has ended.
        """
        if has_failed and now - ended_at > AWAIT_VERDICT_SECONDS:
            return False
        if has_exited and not has_failed:
            return False
        return self._lost_since is None or now - max(self._lost_since, ended_at) <= STAY_SECONDS
