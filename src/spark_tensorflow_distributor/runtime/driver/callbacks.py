"""The callbacks on the driver that follow a run."""

from collections.abc import Iterable
from typing import Any

from ...errors import ConfigurationError
from ...formatting import one_line, type_name, with_article
from .history import HistoryEntry
from .loggers import run_log as _log
from .report import AttemptReport, RunReport


class RunCallback:
    """Follows a run on the driver, while the workers train; override the methods that you need.

    The methods are called in the thread that drives the run: the one that called ``run``, or a background thread for
    ``submit``. They may use whatever the driver has, such as the Spark session and the network. An exception
    that they raise is logged, and never fails the run.

    Example::

        class StopWhenDiverging(RunCallback):
            def on_epoch_end(self, fit, epoch, logs):
                return logs["loss"] > 100

        MirroredStrategyRunner(num_slots=8, callbacks=[StopWhenDiverging()]).run(train)
    """

    def on_run_begin(self, report: RunReport) -> None:
        """Called before the first attempt.

        Args:
            report: The report of the run, which is updated during the run.
        """

    def on_attempt_begin(self, attempt: int) -> None:
        """Called before the workers are launched.

        Args:
            attempt: 0 for the first attempt.
        """

    def on_epoch_end(self, fit: int | None, epoch: int, logs: dict[str, float]) -> bool | None:
        """Called after each epoch of ``fit``, and for each call of ``get_context().report``.

        Workers wait up to ten seconds for the answer before they begin the next epoch. An epoch that is trained again
        after a failure is reported again.

        Args:
            fit: Number of the call of ``fit`` in the training function, from 0; None for ``get_context().report``.
            epoch: Number of the epoch, from 0; for ``get_context().report``, its ``step``.
            logs: The metrics by name.

        Returns:
            True to end this ``fit`` after this epoch, on all workers, as Keras' ``EarlyStopping`` does. For a custom
            loop, ``get_context().should_stop()`` then returns True.
        """
        return None

    def on_attempt_end(self, report: AttemptReport) -> None:
        """Called when an attempt has ended, whether it succeeded or failed.

        Args:
            report: The report of the attempt.
        """

    def on_result(self, value: Any) -> None:
        """Called when the run has succeeded.

        Args:
            value: The value that ``run`` returns.
        """

    def on_run_end(self, report: RunReport) -> None:
        """Called last, whether the run succeeded, failed or was interrupted.

        Args:
            report: The report of the run.
        """


class CallbackList:
    """Calls the callbacks of a run, and logs their failures.

    Args:
        callbacks: The runner's argument.

    Raises:
        ConfigurationError: One of them is not a :class:`RunCallback`.
    """

    def __init__(self, callbacks: Iterable[RunCallback] = ()) -> None:
        if isinstance(callbacks, RunCallback):
            callbacks = [callbacks]
        try:
            self._callbacks = tuple(callbacks)
        except TypeError:
            raise ConfigurationError(
                f"callbacks is {with_article(type_name(callbacks))}; it must be a list of RunCallback objects."
            ) from None
        for each in self._callbacks:
            if isinstance(each, type) and issubclass(each, RunCallback):
                raise ConfigurationError(
                    f"callbacks has the class {each.__name__}; it must have an object of it. Pass {each.__name__}(...)."
                )
            if not isinstance(each, RunCallback):
                raise ConfigurationError(
                    f"callbacks has {with_article(type_name(each))}, which is not a RunCallback. Keras' own callbacks "
                    "belong to fit() in the training function; callbacks of the run derive from "
                    "spark_tensorflow_distributor.RunCallback."
                )
        self._failed: set[tuple[int, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    @property
    def names(self) -> set[str]:
        """The names of the callbacks' classes and of their base classes."""
        return {base.__name__ for callback in self._callbacks for base in type(callback).__mro__}

    def call(self, method: str, *args: object) -> None:
        """Call a method of every callback."""
        for callback in self._callbacks:
            self._call(callback, method, *args)

    def on_epoch_end(self, entry: HistoryEntry) -> str | None:
        """Report an epoch; return the name of the class that wants to stop, or None."""
        stopped_by = None
        for callback in self._callbacks:
            # Each gets a copy, because the entry belongs to the report.
            if self._call(callback, "on_epoch_end", entry["fit"], entry["epoch"], dict(entry["logs"])):
                stopped_by = stopped_by or type(callback).__name__
        return stopped_by

    def _call(self, callback: RunCallback, method: str, *args: object) -> Any:
        try:
            return getattr(callback, method)(*args)
        except Exception as error:
            # Show the traceback only once: if a server is down, the callback fails after every epoch.
            is_new = (id(callback), method) not in self._failed
            self._failed.add((id(callback), method))
            _log.warning(
                "%s.%s raised an exception; the run continues: %s",
                type(callback).__name__, method, one_line(error), exc_info=is_new,
            )  # fmt: skip
            return None
