"""What holds for routes beyond their configuration, and what was counted at them, in one process: in memory, and in the
file of the budgets, whose connection the event loop owns.

    killed                            leaves
    before a change is written        the course as it was: nobody was told otherwise
    after it, before it is on disk    the change, which nobody was told of; a power cut may take it back
    before a flush is written         the counts up to the last flush, a second ago
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Final

import orjson

from gateway.state.embedded import EmbeddedStore
from gateway.state.errors import StateUnusable
from policies.money import MOST
from routing.course import BUCKET, KEPT, Bucket, Course, bucket_at, checked
from routing.errors import StoreUnavailable

log = logging.getLogger("weighbridge.state")

_FORGOTTEN_AT_ONCE: Final = 60
"""Buckets that are deleted together: after a week's rest there are many."""

_COURSE: Final = "INSERT OR REPLACE INTO courses VALUES (?, ?)"
_BUCKET: Final = "INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)"
_FORGET: Final = "DELETE FROM buckets WHERE at < min(?, (SELECT min(at) FROM buckets) + ?)"

_FIELDS: Final = tuple(field.name for field in fields(Course) if field.name != "trouble")


class Counts:
    """What was counted at routes and is not flushed yet."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[str, dict[str, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, route: str, counts: Mapping[str, int]) -> None:
        """Adds to what there is."""
        sums = self._of.get(route)
        if sums is None:
            sums = self._of[route] = {}
        for key, number in counts.items():
            sums[key] = sums.get(key, 0) + number

    def take(self) -> dict[str, dict[str, int]]:
        """All of it, which is gone from here. What a target says of itself may be anything: no number is too large."""
        taken, self._of = self._of, {}
        return {
            route: {key: max(0, min(number, MOST)) for key, number in counts.items()} for route, counts in taken.items()
        }


class EmbeddedRoutes:
    """Implements `routing.course.RouteStore`."""

    shared: Final = False

    def __init__(self, store: EmbeddedStore, clock: Callable[[], int] = time.time_ns) -> None:
        """`store` has the file, and is closed by whoever has made it, after this. `clock` gives Unix nanoseconds.

        Raises StateUnusable, and then the file is given back.
        """
        self._store = store
        self._clock = clock
        self._counts = Counts()
        self._courses: dict[str, Course] = {}
        self._newest = 0
        """The bucket into which was flushed last."""
        self._open: dict[str, dict[str, int]] = {}
        """What is in it, by route."""
        self._doubtful: dict[tuple[int, str], dict[str, int]] = {}
        """What has to be in buckets whose writing has failed, and may yet be found in the file."""
        with store.journal.beginning():
            try:
                rows = store.journal.ask("SELECT route, course FROM courses", ())()
                self._courses = {route: read(text) for route, text in rows}
                ((newest,),) = store.journal.ask("SELECT max(at) FROM buckets", ())()
                self._newest = newest or 0
                self._open = self._found(self._newest)
            except (ValueError, TypeError) as error:
                raise StateUnusable(f"{store.path} is damaged ({error}). Put a copy in its place.") from error

    @property
    def failure(self) -> str | None:
        return self._store.failure

    @property
    def heard_ns(self) -> int:
        """Now: nobody else changes them."""
        return time.monotonic_ns()

    def begin(self) -> None:
        """The file is there since the store was made."""

    async def courses(self) -> Mapping[str, Course]:
        return dict(self._courses)

    async def steer(self, route: str, course: Course, expected_epoch: int) -> bool:
        text = written(course, expected_epoch)
        course = read(text)
        known = self._courses.get(route)
        if known != course:
            if (known.epoch if known is not None else 0) != expected_epoch:
                return False
            self._write([(_COURSE, (route, text))])
            self._courses[route] = course
        try:
            await asyncio.to_thread(self._store.journal.sync)
        except OSError as error:
            raise StoreUnavailable(f"{self._store.path} cannot be used: {error.strerror}.") from None
        return True

    def count(self, route: str, counts: Mapping[str, int]) -> None:
        self._counts.add(route, counts)

    async def flush(self) -> None:
        self._flush()

    async def buckets(self, route: str, since: int, until: int) -> list[Bucket]:
        query = "SELECT at, counts FROM buckets WHERE at >= ? AND at < ? AND route = ? ORDER BY at"
        until = min(until, bucket_at(self._clock() // 1_000_000_000, self._newest))
        if self.failure is not None:
            raise StoreUnavailable(self.failure)
        try:
            answer = self._store.journal.ask(query, (max(since, 0), until, route))
            return await asyncio.to_thread(
                lambda: [Bucket(at, counts) for at, text in answer() if (counts := orjson.loads(text))]
            )
        except (sqlite3.Error, ValueError) as error:
            raise StoreUnavailable(f"{self._store.path} cannot be used: {error}.") from None

    async def close(self) -> None:
        try:
            self._flush()
        except StoreUnavailable as error:
            log.error("what was counted at routes last is lost: %s", error)

    def _flush(self) -> None:
        if self.failure is not None:
            raise StoreUnavailable(self.failure)
        if not self._counts and not self._doubtful:
            return
        statements: list[tuple[str, tuple[object, ...]]] = []
        at = bucket_at(self._clock() // 1_000_000_000, self._newest)
        if at != self._newest:
            try:
                self._open = self._found(at)  # there is something in it where the clock was set back
            except (sqlite3.Error, ValueError) as error:
                raise StoreUnavailable(f"{self._store.path} cannot be used: {error}.") from None
            self._newest = at
            statements.append((_FORGET, (at - KEPT, _FORGOTTEN_AT_ONCE * BUCKET)))
        taken = self._counts.take()
        sums = {route: _sum(self._open.get(route, {}), counts) for route, counts in taken.items()}
        rows = self._doubtful | {(at, route): counts for route, counts in sums.items()}
        statements += [(_BUCKET, (*place, orjson.dumps(counts))) for place, counts in rows.items()]
        try:
            self._write(statements)
        except StoreUnavailable:
            for route, counts in taken.items():
                self._doubtful[at, route] = self._open.get(route, {})
                self._counts.add(route, counts)
            raise
        self._doubtful.clear()
        self._open |= sums

    def _found(self, at: int) -> dict[str, dict[str, int]]:
        """What is in the file of one bucket, by route. Raises sqlite3.Error, ValueError."""
        rows = self._store.journal.ask("SELECT route, counts FROM buckets WHERE at = ?", (at,))()
        return {route: orjson.loads(text) for route, text in rows}

    def _write(self, statements: list[tuple[str, tuple[object, ...]]]) -> None:
        if self.failure is None:
            try:
                self._store.write(statements)
                return
            except sqlite3.Error:
                pass  # the store's failure tells it
        raise StoreUnavailable(self.failure)


def written(course: Course, expected_epoch: int) -> str:
    """A course as it is kept. Raises ValueError when it is not the next one, or cannot be kept."""
    if course.epoch != expected_epoch + 1:
        raise ValueError(f"after the epoch {expected_epoch} comes the next one, not {course.epoch}")
    try:
        facts = {name: getattr(course, name) for name in _FIELDS}
        return json.dumps(facts, separators=(",", ":"), allow_nan=False, default=dict)
    except TypeError as error:
        raise ValueError(f"this course is no JSON: {error}") from None


def read(text: str | bytes) -> Course:
    """A course as it was kept; what a newer version has added is left out. Raises ValueError for what is none.

    One that is, and cannot be used, says so.
    """
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(facts, dict):
        raise ValueError("it is no object")
    return checked(facts)


def _sum(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {**counts, **{key: counts.get(key, 0) + number for key, number in more.items()}}
