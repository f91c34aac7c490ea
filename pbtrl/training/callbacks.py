"""User callbacks, which observe a run while it trains and may request a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pbtrl.core.records import Decision, Record, ReportRecord
from pbtrl.errors import CallbackError, RunError


class Callback:
    """Base class of callbacks. Returning True from `on_decision` or `on_report` requests a stop, as Ctrl-C does.

    A callback that raises ends the run with CallbackError; the run can be resumed.
    """

    def on_decision(self, decision: Decision) -> bool | None:
        """Called after a decision of the strategy was written to the journal."""

    def on_report(self, report: ReportRecord) -> bool | None:
        """Called after a report of a member was written to the journal."""

    def on_finish(self, best: dict[str, Any] | None) -> None:
        """Called after the run finished, with the content of best.json."""


class CallbackListener:
    """Listener of the controller that calls the callbacks. Raises RunError if one is not a `Callback`.

    Attributes:
        stop_requested: whether a callback requested a stop.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        if not isinstance(callbacks, Sequence):
            raise RunError(f"callbacks must be a list, not {callbacks!r:.80}")
        if others := [callback for callback in callbacks if not isinstance(callback, Callback)]:
            raise RunError(f"callbacks must be instances of subclasses of pbtrl.Callback, not {others[0]!r:.80}")
        self._callbacks = list(callbacks)
        self.stop_requested = False

    def event(self, record: Record) -> None:
        """Pass a decision or a report to the callbacks."""
        for callback in self._callbacks:
            if isinstance(record, Decision):
                self._call(callback.on_decision, record)
            elif isinstance(record, ReportRecord):
                self._call(callback.on_report, record)

    def tick(self) -> None:
        """Ignore; callbacks are called for records only."""

    def finish(self, best: dict[str, Any] | None) -> None:
        """Tell the callbacks that the run has finished."""
        for callback in self._callbacks:
            self._call(callback.on_finish, best)

    def _call(self, function: Callable[[Any], bool | None], argument: object) -> None:
        try:
            self.stop_requested |= function(argument) is True
        except Exception as error:
            raise CallbackError(f"{function.__qualname__} raised {type(error).__name__}: {error}") from error
