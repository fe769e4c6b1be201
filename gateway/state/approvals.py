"""Calls that people are asked about, what they have allowed beforehand and how agents stand, in one process: in the
file of the budgets, whose connection the event loop owns. Nothing of it is in memory but what waits to be written.

What is changed at the same time is written in one transaction and brought to the disk together.

    killed                            leaves
    before a change is written        what was there before: nobody was told otherwise
    after it, before it is on disk    the change with all its messages, which nobody was told of; a power cut may take
                                      it back whole
    while somebody has a message      the message, which is given to the next who asks
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

import orjson

from gateway.state.embedded import EmbeddedStore
from policies.approval_json import (
    answer_from_json,
    answer_to_json,
    approval_from_json,
    approval_to_json,
    grant_from_json,
    grant_to_json,
    message_from_json,
    message_to_json,
    standing_from_json,
    standing_to_json,
)
from policies.approval_store import ANSWERS_KEPT, KEPT, Answer, Message, Standing, StoreUnavailable
from policies.approvals import ACTIVE, Approval, State, due
from policies.grants import Grant

log = logging.getLogger("weighbridge.state")

T = TypeVar("T")

UNKNOWN_KEPT: Final = 90 * 86_400
"""Seconds for which a call can be looked up of which nobody knows what came of it: people must see it."""
MESSAGES_KEPT: Final = 7 * 86_400
"""Seconds after which a message is given up that nobody has asked for."""
GRANTS_KEPT: Final = 3600
"""Seconds for which it is known of a grant that has ended that there was one."""

_AT_ONCE: Final = 50
"""Changes in one transaction: a few milliseconds."""
_MOST_ON_DISK: Final = 1000
"""Changes for which the disk is waited for once."""
_CLOSING: Final = 5.0
"""Seconds after which a disk that does not answer is left to itself."""
_FORGOTTEN_AT_ONCE: Final = 20
"""Rows of each table that are deleted together, at least."""
_FORGET_EVERY: Final = 1.0
"""Seconds after which more are deleted where nothing else is written."""

_LARGEST: Final = 2**63 - 1
_PAGE: Final = 4096
"""Bytes that a change adds to SQLite's log beside its documents."""
_PAGES: Final = 8 * _PAGE
"""Bytes that a transaction adds beside these: all the indices have places of their own."""

_BY_ID: Final = "SELECT version, document FROM approvals WHERE id = ?"
_LAST: Final = "SELECT id, state, document FROM approvals WHERE key = ? ORDER BY number DESC LIMIT 1"
_OPEN: Final = """INSERT INTO approvals (id, key, tenant, state, version, due, kept_until, document)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_REPLACE: Final = "UPDATE approvals SET state = ?, version = ?, due = ?, kept_until = ?, document = ? WHERE id = ?"
_DUE: Final = "SELECT document FROM approvals WHERE due <= ? ORDER BY due, id LIMIT ?"
_VERSIONS: Final = "SELECT id, version FROM approvals WHERE id IN (SELECT value FROM json_each(?))"
_ANSWER: Final = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)"
_ANSWERED: Final = "SELECT document FROM answers WHERE approval = ? AND kept_until > ?"

_TELL: Final = "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?)"
_WAITING: Final = "SELECT id, tries, document FROM messages WHERE until <= ? ORDER BY until, id LIMIT ?"
_POSTPONE: Final = "UPDATE messages SET tries = tries + 1, until = ?1 WHERE id = ?2 AND until IS NOT ?1"

_GRANT: Final = "INSERT OR IGNORE INTO grants VALUES (?, ?, 0, ?, ?, ?)"
_GRANTED: Final = "SELECT uses, cost, document FROM grants WHERE id = ? AND NOT revoked"
_GRANTS: Final = "SELECT uses, cost, document FROM grants WHERE expires > ? AND NOT revoked ORDER BY id"
_USED: Final = 'SELECT cost FROM uses WHERE "grant" = ? AND call = ?'
_COUNT: Final = "UPDATE grants SET uses = ?, cost = ? WHERE id = ?"

_OF_AGENT: Final = "SELECT epoch, document FROM standings WHERE tenant = ? AND agent = ?"

_FORGET: Final = tuple(
    (
        f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {column} <= ? ORDER BY {column} LIMIT ?)",
        after,
    )
    for table, column, after in (
        ("approvals", "kept_until", 0),
        ("answers", "kept_until", 0),
        ("messages", "until", MESSAGES_KEPT),
    )
)
"""Statements, and how many seconds after its time a row goes."""
_ENDED_GRANT: Final = "SELECT id FROM grants WHERE expires <= ? ORDER BY expires LIMIT 1"
_FORGET_USES: Final = (
    'DELETE FROM uses WHERE "grant" = ?1 AND call IN (SELECT call FROM uses WHERE "grant" = ?1 LIMIT ?2)'
)
_FORGETTABLE: Final = """SELECT EXISTS (SELECT 1 FROM approvals WHERE kept_until <= ?1)
    OR EXISTS (SELECT 1 FROM answers WHERE kept_until <= ?1) OR EXISTS (SELECT 1 FROM grants WHERE expires <= ?2)
    OR EXISTS (SELECT 1 FROM messages WHERE until <= ?3)"""


@dataclass(frozen=True, slots=True)
class _Change:
    """What somebody wants written: `work` returns the answer and the ids of what it has changed, and raises ValueError
    before it writes anything. `size` is about how many bytes it writes."""

    work: Callable[[sqlite3.Cursor], tuple[Any, Collection[str]]]
    size: int
    done: asyncio.Future[Any]


_Result: TypeAlias = tuple[Any, Collection[str] | None]
"""What somebody is answered, which may be an exception, and what has changed; None where that is not certain."""


class EmbeddedApprovals:
    """Implements `policies.approval_store.ApprovalStore`."""

    def __init__(self, store: EmbeddedStore, clock: Callable[[], int] = time.time_ns) -> None:
        """`store` has the file, and is closed by whoever has made it, after this. `clock` gives Unix nanoseconds.

        Raises StateUnusable, and then the file is given back.
        """
        self._store = store
        self._journal = store.journal
        self._clock = clock
        self._listeners: list[Callable[[Collection[str] | None], None]] = []
        self._wanted: list[_Change] = []
        self._writing: asyncio.Task[None] | None = None
        self._leases: dict[str, int] = {}
        """Until when somebody has a message. After a restart nobody has any."""
        self._written = 0
        """Transactions so far."""
        self._on_disk = 0
        """Those of them that a power cut does not take."""
        self._syncing: asyncio.Task[OSError | None] | None = None
        self._forgotten_ns = 0
        self._closed = False
        with store.journal.beginning():
            for query, values in ((_BY_ID, ("",)), (_ANSWERED, ("", 0)), (_WAITING, (0, 0)), (_USED, ("", ""))):
                self._journal.rows(query, values)
            self._journal.rows(_VERSIONS, ("[]",))
            self._journal.rows(_GRANTS, (_LARGEST,))
            self._journal.rows(_OF_AGENT, ("", ""))

    @property
    def failure(self) -> str | None:
        return self._store.failure

    def now_ns(self) -> int:
        return self._clock()

    def begin(self) -> None:
        """The file is there since the store was made."""

    def listen(self, changed: Callable[[Collection[str] | None], None]) -> None:
        self._listeners.append(changed)

    # Approvals

    async def open(self, fresh: Approval, messages: Sequence[Message] = ()) -> Approval:
        document, notes = approval_to_json(fresh), _notes(messages)

        def work(cursor: sqlite3.Cursor) -> tuple[Approval, Collection[str]]:
            known = cursor.execute(_BY_ID, (fresh.id,)).fetchone()
            if known is not None:
                return approval_from_json(known[1]), ()
            last = cursor.execute(_LAST, (fresh.key,)).fetchone()
            if last is not None and last[1] in ACTIVE:
                return approval_from_json(last[2]), ()
            self._insert(cursor, fresh, document)
            cursor.executemany(_TELL, notes)
            return fresh, (fresh.id,)

        return await self._change(work, document, notes)

    async def get(self, approval: str) -> Approval | None:
        rows = await self._rows(_BY_ID, (approval,))
        return self._read(approval_from_json, rows[0][1]) if rows else None

    async def versions(self, approvals: Collection[str]) -> Mapping[str, int]:
        return await self._asked(_VERSIONS, (orjson.dumps(list(approvals)).decode(),), dict)

    async def last(self, key: str) -> Approval | None:
        rows = await self._rows(_LAST, (key,))
        return self._read(approval_from_json, rows[0][2]) if rows else None

    async def replace(self, after: Approval, messages: Sequence[Message] = (), *, answer: Answer | None = None) -> bool:
        document, notes = approval_to_json(after), _notes(messages)
        answered = answer_to_json(answer) if answer is not None else b""

        def work(cursor: sqlite3.Cursor) -> tuple[bool, Collection[str]]:
            known = cursor.execute(_BY_ID, (after.id,)).fetchone()
            if known is None or known[0] != after.version - 1:
                return known is not None and known[1] == document, ()
            self._update(cursor, after, document)
            cursor.executemany(_TELL, notes)
            if answered:
                cursor.execute(_ANSWER, (after.id, self._in(ANSWERS_KEPT), answered))
            return True, (after.id,)

        return await self._change(work, document, notes, answered)

    async def supersede(self, before: Approval, fresh: Approval, messages: Sequence[Message] = ()) -> bool:
        document, fresh_document, notes = approval_to_json(before), approval_to_json(fresh), _notes(messages)

        def work(cursor: sqlite3.Cursor) -> tuple[bool, Collection[str]]:
            known = cursor.execute(_BY_ID, (before.id,)).fetchone()
            if known is None or known[0] != before.version - 1:
                return known is not None and known[1] == document, ()
            last = cursor.execute(_LAST, (fresh.key,)).fetchone()
            others = last is not None and last[1] in ACTIVE and last[0] != before.id
            if others or cursor.execute(_BY_ID, (fresh.id,)).fetchone() is not None:
                return False, ()
            self._update(cursor, before, document)
            self._insert(cursor, fresh, fresh_document)
            cursor.executemany(_TELL, notes)
            return True, (before.id, fresh.id)

        return await self._change(work, document, notes, fresh_document)

    async def answer(self, approval: str) -> Answer | None:
        rows = await self._rows(_ANSWERED, (approval, self._clock()))
        return self._read(answer_from_json, rows[0][0]) if rows else None

    async def listed(
        self, states: Collection[State], tenant: str | None = None, after: str | None = None, most: int = 100
    ) -> Sequence[Approval]:
        # A page of each state, by the index alone, and of these the first: what has ended is not looked through.
        page = "SELECT id FROM approvals WHERE state = ? AND id > ?"
        page += " AND tenant = ?" if tenant is not None else ""
        ids = " UNION ALL ".join(f"SELECT * FROM ({page} ORDER BY id LIMIT ?)" for _ in states) or "SELECT NULL"
        values: list[object] = []
        for state in states:
            values += [state, after or "", *([tenant] if tenant is not None else []), most]
        query = f"SELECT document FROM approvals WHERE id IN ({ids}) ORDER BY id LIMIT ?"
        return await self._asked(query, (*values, most), _approvals)

    async def due(self, now: int, most: int = 100) -> Sequence[Approval]:
        await self._forget_some()
        return await self._asked(_DUE, (now, most), _approvals)

    # What people are to be told

    async def messages(self, now: int, lease: int, most: int = 20) -> Sequence[Message]:
        await self._settled()
        self._leases = {message: until for message, until in self._leases.items() if until > now}
        rows = await self._rows(_WAITING, (now, most + len(self._leases)))
        free = [row for row in rows if row[0] not in self._leases][:most]
        found = [replace(self._read(message_from_json, row[2]), tries=row[1]) for row in free]
        for message in found:
            self._leases[message.id] = now + lease
        return found

    async def delivered(self, message: str) -> None:
        def work(cursor: sqlite3.Cursor) -> tuple[None, Collection[str]]:
            cursor.execute("DELETE FROM messages WHERE id = ?", (message,))
            return None, ()

        await self._change(work)

    async def postponed(self, message: str, until: int) -> None:
        def work(cursor: sqlite3.Cursor) -> tuple[None, Collection[str]]:
            cursor.execute(_POSTPONE, (until, message))
            return None, ()

        await self._change(work)
        self._leases.pop(message, None)

    # Grants

    async def grant(self, grant: Grant) -> None:
        document = grant_to_json(grant)

        def work(cursor: sqlite3.Cursor) -> tuple[None, Collection[str]]:
            cursor.execute(_GRANT, (grant.id, min(grant.expires, _LARGEST), grant.uses, grant.cost, document))
            return None, (grant.id,) if cursor.rowcount else ()

        await self._change(work, document)

    async def grants(self) -> Sequence[Grant]:
        now = self._clock()
        found = [self._granted(row) for row in await self._rows(_GRANTS, (now,))]
        return [grant for grant in found if grant.lasts(now)]

    async def use(self, grant: str, call: str, cost: int) -> bool:
        def work(cursor: sqlite3.Cursor) -> tuple[bool, Collection[str]]:
            row = cursor.execute(_GRANTED, (grant,)).fetchone()
            if row is None:
                return False, ()
            if cursor.execute(_USED, (grant, call)).fetchone() is not None:
                return True, ()
            known, now = self._granted(row), self._clock()
            after = replace(known, uses=known.uses + 1, cost=known.cost + cost)
            most = min(_LARGEST, known.max_cost) if known.max_cost is not None else _LARGEST
            if not known.lasts(now) or after.cost > most:
                return False, ()
            cursor.execute("INSERT INTO uses VALUES (?, ?, ?)", (grant, call, cost))
            cursor.execute(_COUNT, (after.uses, after.cost, grant))
            return True, () if after.lasts(now) else (grant,)

        return await self._change(work)

    async def give_back(self, grant: str, call: str) -> None:
        def work(cursor: sqlite3.Cursor) -> tuple[None, Collection[str]]:
            row = cursor.execute(_GRANTED, (grant,)).fetchone()
            used = cursor.execute(_USED, (grant, call)).fetchone()
            if row is None or used is None:
                return None, ()
            known, now = self._granted(row), self._clock()
            after = replace(known, uses=known.uses - 1, cost=known.cost - used[0])
            cursor.execute('DELETE FROM uses WHERE "grant" = ? AND call = ?', (grant, call))
            cursor.execute(_COUNT, (after.uses, after.cost, grant))
            return None, () if known.lasts(now) or not after.lasts(now) else (grant,)

        await self._change(work)

    async def revoke(self, grant: str) -> bool:
        def work(cursor: sqlite3.Cursor) -> tuple[bool, Collection[str]]:
            cursor.execute("UPDATE grants SET revoked = 1 WHERE id = ? AND NOT revoked", (grant,))
            return (True, (grant,)) if cursor.rowcount else (False, ())

        return await self._change(work)

    # How agents stand

    async def standings(self) -> Mapping[tuple[str, str], Standing]:
        rows = await self._rows("SELECT tenant, agent, document FROM standings", ())
        return {(tenant, agent): self._read(standing_from_json, text) for tenant, agent, text in rows}

    async def stand(self, tenant: str, agent: str, standing: Standing) -> bool:
        document = standing_to_json(standing)

        def work(cursor: sqlite3.Cursor) -> tuple[bool, Collection[str]]:
            epoch, known = cursor.execute(_OF_AGENT, (tenant, agent)).fetchone() or (0, b"")
            if epoch != standing.epoch - 1:
                return bool(known == document), ()
            statement = "INSERT OR REPLACE INTO standings VALUES (?, ?, ?, ?)"
            cursor.execute(statement, (tenant, agent, standing.epoch, document))
            return True, ()

        return await self._change(work, document)

    async def close(self) -> None:
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_CLOSING)

    # Rows

    def _insert(self, cursor: sqlite3.Cursor, fresh: Approval, document: bytes) -> None:
        facts = (fresh.id, fresh.key, fresh.call.tenant, fresh.state, fresh.version, *self._until(fresh), document)
        cursor.execute(_OPEN, facts)

    def _update(self, cursor: sqlite3.Cursor, after: Approval, document: bytes) -> None:
        cursor.execute(_REPLACE, (after.state, after.version, *self._until(after), document, after.id))

    def _until(self, approval: Approval) -> tuple[int | None, int | None]:
        """When time makes something of it, and until when it is kept; None for always."""
        at = due(approval)
        return (
            min(at, _LARGEST) if at is not None else None,
            None if approval.state in ACTIVE else self._in(UNKNOWN_KEPT if approval.state is State.UNKNOWN else KEPT),
        )

    def _in(self, seconds: int) -> int:
        return self._clock() + seconds * 1_000_000_000

    def _granted(self, row: tuple[int, int, bytes]) -> Grant:
        uses, cost, document = row
        return replace(self._read(grant_from_json, document), uses=uses, cost=cost)

    def _read(self, form: Callable[[bytes], T], document: bytes) -> T:
        try:
            return form(document)
        except ValueError as error:
            raise self._damaged(error) from None

    def _damaged(self, error: ValueError) -> StoreUnavailable:
        return StoreUnavailable(f"{self._store.path} is damaged ({error}).")

    # Asking

    async def _rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """A few rows, once all that there is cannot be lost any more."""
        await self._settled()
        try:
            return self._journal.rows(query, values)
        except UnicodeEncodeError:  # SQLite has no such text: nothing is called so
            return []
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    async def _asked(self, query: str, values: Sequence[object], read: Callable[[list[tuple[Any, ...]]], T]) -> T:
        """What `read` makes of many of them, elsewhere than in the event loop."""
        await self._settled()
        try:
            answer = self._journal.ask(query, values)
            return await asyncio.to_thread(lambda: read(answer()))
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        except ValueError as error:
            raise self._damaged(error) from None

    async def _settled(self) -> None:
        await self._all_on_disk()
        if self.failure is not None:
            raise StoreUnavailable(self.failure)

    def _unusable(self, error: sqlite3.Error | OSError) -> StoreUnavailable:
        return StoreUnavailable(f"{self._store.path} cannot be used: {error}.")

    # Changing

    async def _change(
        self,
        work: Callable[[sqlite3.Cursor], tuple[T, Collection[str]]],
        document: bytes = b"",
        notes: Sequence[tuple[str, int, int, bytes]] = (),
        more: bytes = b"",
    ) -> T:
        """Returns what `work` does once it is on the disk."""
        if self._closed or self.failure is not None:
            raise StoreUnavailable(self.failure or "The state is closed.")
        size = _PAGE + len(document) + len(more) + sum(len(note[3]) for note in notes)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._wanted.append(_Change(work, size, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="approvals are written")
        return await done

    async def _write(self) -> None:
        try:
            while self._wanted:
                changes = [change for change in self._wanted[:_MOST_ON_DISK] if not change.done.done()]
                del self._wanted[:_MOST_ON_DISK]
                results: list[_Result] = []
                for first in range(0, len(changes), _AT_ONCE):
                    results += self._committed(changes[first : first + _AT_ONCE])
                    await asyncio.sleep(0)
                try:
                    await self._all_on_disk()
                except StoreUnavailable as error:
                    results = [(error, None)] * len(changes)
                self._answer(changes, results)
                await asyncio.sleep(0)  # who waits to read does so before more is written
        finally:
            self._writing = None

    def _committed(self, changes: Sequence[_Change]) -> list[_Result]:
        """What becomes of some changes in one transaction: of all the same where this cannot be."""
        try:
            size = _PAGES + sum(change.size for change in changes)
            results = self._store.change(lambda cursor: self._done(cursor, changes), size)
            self._written += 1
            return results
        except sqlite3.Error as error:
            return [(StoreUnavailable(self.failure or str(error)), None)] * len(changes)
        except Exception as error:  # whatever it is, all of them wait for an answer
            log.exception("approvals could not be written")
            return [(StoreUnavailable(f"{self._store.path} cannot be used: {error}."), None)] * len(changes)

    def _answer(self, changes: Sequence[_Change], results: Sequence[_Result]) -> None:
        changed: list[str] = []
        missed = False
        for change, (result, ids) in zip(changes, results, strict=True):
            missed = missed or ids is None
            changed += ids or ()
            if change.done.done():
                continue
            if isinstance(result, Exception):
                change.done.set_exception(result)
            else:
                change.done.set_result(result)
        if missed or changed:
            self._tell(None if missed else changed)

    def _done(self, cursor: sqlite3.Cursor, changes: Sequence[_Change]) -> list[_Result]:
        results: list[_Result] = []
        for change in changes:
            try:
                results.append(change.work(cursor))
            except StoreUnavailable as error:
                results.append((error, ()))
            except ValueError as error:
                results.append((self._damaged(error), ()))
        self._forget(cursor, max(_FORGOTTEN_AT_ONCE, 2 * len(changes)))
        return results

    def _tell(self, changed: Collection[str] | None) -> None:
        for listener in self._listeners:
            try:
                listener(changed)
            except Exception:
                log.exception("who listens for approvals has failed")

    async def _all_on_disk(self) -> None:
        """Returns once a power cut takes nothing of what is written. All who wait for the disk do so together."""
        while self._on_disk < self._written:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync(), name="approvals are brought to the disk")
            error = await asyncio.shield(self._syncing)
            if error is not None:
                raise self._unusable(error)

    async def _sync(self) -> OSError | None:
        written = self._written
        try:
            await asyncio.to_thread(self._journal.sync)
            self._on_disk = written
        except OSError as error:
            return error
        finally:
            self._syncing = None
        return None

    # Forgetting

    async def _forget_some(self) -> None:
        now = self._clock()
        if abs(now - self._forgotten_ns) < _FORGET_EVERY * 1_000_000_000:
            return
        self._forgotten_ns = now
        ((some,),) = await self._rows(_FORGETTABLE, (now, self._in(-GRANTS_KEPT), self._in(-MESSAGES_KEPT)))
        if some:
            await self._change(lambda _: (None, ()))

    def _forget(self, cursor: sqlite3.Cursor, most: int) -> None:
        for statement, after in _FORGET:
            cursor.execute(statement, (self._in(-after), most))
        ended = cursor.execute(_ENDED_GRANT, (self._in(-GRANTS_KEPT),)).fetchone()
        if ended is not None:
            cursor.execute(_FORGET_USES, (*ended, most))
            if cursor.rowcount < most:
                cursor.execute("DELETE FROM grants WHERE id = ?", ended)


def _approvals(rows: Sequence[tuple[bytes]]) -> list[Approval]:
    return [approval_from_json(document) for (document,) in rows]


def _notes(messages: Sequence[Message]) -> list[tuple[str, int, int, bytes]]:
    return [(each.id, min(each.at, _LARGEST), each.tries, message_to_json(each)) for each in messages]
