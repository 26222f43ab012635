"""What passes between the workers and the driver of a training: a Ray actor that both can reach by name."""

from datetime import UTC, datetime
from typing import Any

Event = dict[str, Any]
"""One record of the log: `kind` is step, validation, checkpoint, failure, start or note; the rest are numbers with
their units in the name, and a `text` where there is something to say."""


class Mailbox:
    """Holds the workers' events until the driver takes them, and the driver's wish to stop until the workers see it.

    It also counts failures, since it outlives every worker: a training that fails again and again before its next
    checkpoint is given up.

    Args:
        max_failures: Failures in a row, with no checkpoint between them, after which training is still tried again.
    """

    def __init__(self, max_failures: int = 0) -> None:
        self._events: list[Event] = []
        self._stop_asked_by = ""
        self._max_failures = max_failures
        self._in_a_row = 0
        self._given_up = ""

    def put(self, event: Event) -> bool:
        """Add an event; does the driver want the training to stop?"""
        self._events.append(event)
        if event["kind"] == "checkpoint" and "text" not in event:
            self._in_a_row = 0
        return bool(self._stop_asked_by)

    def take(self) -> list[Event]:
        """All events since the last call; called by the driver."""
        events, self._events = self._events, []
        return events

    def stop(self, asked_by: str) -> None:
        """Ask the workers to save and stop; called by the driver, or by who knows the run's name. The first counts."""
        self._stop_asked_by = self._stop_asked_by or asked_by

    def stop_asked_by(self) -> str:
        """Who wants the training to stop; empty if nobody does."""
        return self._stop_asked_by

    def failed(self, why: str, *, expected: bool = False) -> None:
        """The workers ended before training was finished; Ray starts them again.

        Args:
            why: In words.
            expected: They left on purpose, everything saved.
        """
        if self._given_up:
            return
        self._in_a_row += not expected
        if self._in_a_row <= self._max_failures:
            text = f"{why}; starting again from the last checkpoint"
            self._events.append({"kind": "failure", "at": now(), "text": text})
            return
        again = f", {self._in_a_row} times without a checkpoint between them" if self._in_a_row > 1 else ""
        self.give_up(f"training failed{again}: {why}")

    def give_up(self, why: str) -> None:
        """There is no use in starting again."""
        self._given_up = self._given_up or why

    def given_up(self) -> str:
        """Why there is no use in starting again; empty while there is."""
        return self._given_up


def now() -> str:
    """The time, for a log."""
    return datetime.now(UTC).isoformat(timespec="seconds")
