"""JSON events from the log of a container, in order, as they come."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

Event = dict[str, Any]
T = TypeVar("T")

SAFETY_SECONDS = 150.0
"""Nobody waits longer than this for something that must come; a fast machine never gets near it."""


class EventLog:
    """Follows the output of a command, `docker logs --follow` for one, in a thread of its own."""

    def __init__(self, name: str, command: list[str]) -> None:
        """Start the command.

        Args:
            name: what it is the log of, for messages.
            command: argument vector; its standard output and error are read line by line.
        """
        self.name = name
        self.lines: list[str] = []
        self._events: list[Event] = []
        self._ended = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = None  # a plain line: kept for the report of a failure
            with self._news:
                self.lines.append(line.rstrip("\n"))
                if isinstance(event, dict) and "event" in event:
                    self._events.append(event)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait(self, name: str, condition: Callable[[Event], bool] = lambda _: True) -> Event:
        """The first event with this name for which the condition holds, past or to come.

        Raises AssertionError if the log ends first or nothing comes within SAFETY_SECONDS.
        """
        return self._wait(
            lambda: next((e for e in self._events if e["event"] == name and condition(e)), None), name
        )

    def events(self, name: str) -> list[Event]:
        """All events with this name so far."""
        with self._news:
            return [event for event in self._events if event["event"] == name]

    def _wait(self, look: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + SAFETY_SECONDS
        with self._news:
            while (found := look()) is None:
                assert not self._ended, f"{self.name}: ended without {what}"
                assert self._news.wait(deadline - time.monotonic()), f"{self.name}: no {what} in time"
        return found

    def close(self) -> None:
        """End the command; the lines stay."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
