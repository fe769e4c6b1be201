"""The file of an embedded state: what has happened, turn by turn, and what it came to, in one SQLite database.

    journal    one row for each turn of the event loop: every step of it; not yet folded, but for the last
    accounts   posted, pending: as they stood after the turn `seq`
    loans      those that were pending for more than a moment, and those that have expired
    over       calls that are over, so that nothing happens to them twice
    spent      the cost ledger, summed by its dimensions
    limits     those that people have set
    courses    what people and rollouts have made of routes
    buckets    what was counted at routes, ten seconds a row
    approvals  calls that people are asked about, numbered as they were opened, and for a while those that are over
    answers    what approved calls were answered with, for an hour
    messages   what people's systems are still to be told of them
    grants     calls that people have allowed beforehand
    uses       the calls that have used a grant
    standings  how agents stand, by a person's word

Every row says up to which turn of the journal it is folded, so that a start repeats for each row exactly those steps
that it lacks, wherever a fold has ended; from the limits on, tables are written to at once. After a kill -9 every
transaction is there that had returned; after a power cut, those up to the last `sync` or checkpoint and some of those
that followed it, in order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from gateway.state.errors import StateUnusable
from policies.books import MOST_REMEMBERED, REMEMBERED, Books, Changes, Debt, Keys, Kind, Line, Page, State, Step
from policies.budgets import DIMENSIONS, METRICS, Raised
from policies.money import MOST

T = TypeVar("T")

FOLDED_AT_ONCE: Final = 64
"""Rows of each table in one transaction: about a millisecond."""
DROPPED_AT_ONCE: Final = 50
"""Turns of the journal that are deleted at once."""

_APPLICATION: Final = 0x57656967
_VERSION: Final = 4

_LARGEST: Final = 2**63 - 1
"""The largest number that a column holds."""

_EXPIRED_KEPT: Final = 48 * 3600 * 10**9
"""Nanoseconds for which an expired loan waits for a late truth."""

_PATIENCE: Final = 0.1
"""Seconds to wait for somebody else's lock on the database: a person with a shell, a backup."""

_LOG_KEPT: Final = 64 * 1024 * 1024
"""Bytes of SQLite's log that stay when it is begun anew."""

_QUICKLY_CHECKED: Final = 256 * 1024 * 1024
"""Bytes up to which the whole file is looked through at the start."""

_ROUTES: Final = """
CREATE TABLE courses (route TEXT PRIMARY KEY, course TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE buckets (
    at INTEGER NOT NULL, route TEXT NOT NULL, counts BLOB NOT NULL, PRIMARY KEY (at, route)
) WITHOUT ROWID;
"""

_APPROVALS: Final = """
CREATE TABLE approvals (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, tenant TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER NOT NULL, due INTEGER, kept_until INTEGER, document BLOB NOT NULL
);
CREATE UNIQUE INDEX approvals_id ON approvals (id, version);
CREATE INDEX approvals_key ON approvals (key, number);
CREATE INDEX approvals_state ON approvals (state, id, tenant);
CREATE INDEX approvals_due ON approvals (due, id) WHERE due IS NOT NULL;
CREATE INDEX approvals_kept ON approvals (kept_until) WHERE kept_until IS NOT NULL;
CREATE TABLE answers (approval TEXT PRIMARY KEY, kept_until INTEGER NOT NULL, document BLOB NOT NULL);
CREATE INDEX answers_kept ON answers (kept_until);
CREATE TABLE messages (id TEXT PRIMARY KEY, until INTEGER NOT NULL, tries INTEGER NOT NULL, document BLOB NOT NULL);
CREATE INDEX messages_until ON messages (until, id);
CREATE TABLE grants (
    id TEXT PRIMARY KEY, expires INTEGER NOT NULL, revoked INTEGER NOT NULL, uses INTEGER NOT NULL,
    cost INTEGER NOT NULL, document BLOB NOT NULL
);
CREATE INDEX grants_expires ON grants (expires);
CREATE TABLE uses (
    "grant" TEXT NOT NULL, call TEXT NOT NULL, cost INTEGER NOT NULL, PRIMARY KEY ("grant", call)
) WITHOUT ROWID;
CREATE TABLE standings (
    tenant TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, document BLOB NOT NULL,
    PRIMARY KEY (tenant, agent)
) WITHOUT ROWID;
"""

_TOOLS: Final = """
CREATE TABLE keys (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE definitions (
    server TEXT NOT NULL, tool TEXT NOT NULL, pin TEXT NOT NULL, text BLOB NOT NULL, PRIMARY KEY (server, tool)
) WITHOUT ROWID;
"""

_SCHEMA: Final = f"""
CREATE TABLE journal (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, steps BLOB NOT NULL);
CREATE TABLE accounts (
    key TEXT PRIMARY KEY, seq INTEGER NOT NULL, posted INTEGER NOT NULL, pending INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE loans (
    call TEXT PRIMARY KEY, seq INTEGER NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL, amount INTEGER NOT NULL,
    accounts BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE over (
    number INTEGER PRIMARY KEY, at INTEGER NOT NULL, what TEXT NOT NULL, count INTEGER NOT NULL, calls BLOB NOT NULL
);
CREATE TABLE spent (
    {", ".join(f"{name} TEXT NOT NULL" for name in DIMENSIONS)},
    {", ".join(f"{name} INTEGER NOT NULL" for name in METRICS)},
    seq INTEGER NOT NULL, PRIMARY KEY ({", ".join(DIMENSIONS)})
) WITHOUT ROWID;
CREATE TABLE limits (
    node TEXT NOT NULL, "window" TEXT NOT NULL, "limit" INTEGER NOT NULL, instead_of INTEGER NOT NULL,
    by TEXT NOT NULL, at INTEGER NOT NULL, comment TEXT NOT NULL, PRIMARY KEY (node, "window")
) WITHOUT ROWID;
{_ROUTES}
{_APPROVALS}
{_TOOLS}
INSERT INTO journal VALUES (0, 0, CAST('[[],[],[]]' AS BLOB));
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""

_SINCE: Final = {1: _ROUTES, 2: _APPROVALS, 3: _TOOLS}
"""What a file of an earlier version lacks of the next one."""

_TURN = "INSERT OR REPLACE INTO journal VALUES (?, ?, ?)"
_ACCOUNT = "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?)"
_LOAN = "INSERT OR REPLACE INTO loans VALUES (?, ?, ?, ?, ?, ?)"
_LIMIT = "INSERT OR REPLACE INTO limits VALUES (?, ?, ?, ?, ?, ?, ?)"
_LINE = f"""INSERT INTO spent VALUES ({", ".join("?" * (len(DIMENSIONS) + len(METRICS) + 1))})
    ON CONFLICT DO UPDATE SET seq = excluded.seq,
    {", ".join(f"{name} = min({MOST}, {name} + excluded.{name})" for name in METRICS)}"""
_LINE_SEQ = f"SELECT seq FROM spent WHERE {' AND '.join(f'{name} = ?' for name in DIMENSIONS)}"


class Journal:
    """One database, and the lock that keeps other processes from it. Methods raise sqlite3.Error.

    All but `checkpoint` and `sync` belong to the thread of the event loop.
    """

    def __init__(self, path: Path) -> None:
        """Raises StateUnusable."""
        self.path = path
        self.seq = 0
        """The last turn that is in the journal."""
        self._first = 0
        """The first one."""
        self._over: deque[tuple[int, int, int]] = deque()
        """Number, time and count of the rows of `over`."""
        self._remembered = 0
        self._lock = _locked(path)
        self._connections: list[sqlite3.Connection] = []
        with self.beginning():
            self._file = _made(path)
            self._db = self._connected()
            self._cursor = self._db.cursor()
            self._prepare()
            self._checkpoints = self._connected()

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Until this has gone well, the file is given back, and what goes wrong is StateUnusable."""
        try:
            yield
        except StateUnusable:
            self.close()
            raise
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StateUnusable(_told(self.path, error)) from error

    # What happens

    def append(self, at: int, steps: Sequence[Step]) -> int:
        """Writes what has happened in one turn, and returns its size in bytes."""
        turn = _turn(steps)
        self._cursor.execute(_TURN, (self.seq + 1, at, turn))
        self.seq += 1
        return len(turn)

    def find(self, key: str) -> Page:
        """An account as it was folded last."""
        row = self._cursor.execute("SELECT posted, pending, used FROM accounts WHERE key = ?", (key,)).fetchone()
        return Page(key, *row) if row is not None else Page(key)

    def ask(self, query: str, values: Sequence[object]) -> Callable[[], list[tuple[Any, ...]]]:
        """A question about the tables as they are now. Calling what this returns answers it, in any thread."""
        address = f"{self.path.absolute().as_uri()}?mode=rw"  # else a file that was moved away would be made again
        connection = sqlite3.connect(
            address, uri=True, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM journal LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise

        def answer() -> list[tuple[Any, ...]]:
            try:
                return connection.execute(query, values).fetchall()
            finally:
                connection.close()

        return answer

    def write(self, statements: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Carries out what somebody else keeps in this file, in one transaction."""

        def written(cursor: sqlite3.Cursor) -> None:
            for statement, values in statements:
                cursor.execute(statement, values)

        self.change(written)

    def change(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """As `write`, for whoever has to look at tables before it is known what to write: all in one transaction."""
        if self.moved:
            raise sqlite3.OperationalError("it was moved or deleted")
        with self._transaction():
            return work(self._cursor)

    def rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """What somebody else keeps in this file: a few rows that an index finds."""
        if self.moved:
            raise sqlite3.OperationalError("it was moved or deleted")
        return self._cursor.execute(query, values).fetchall()

    def set_limit(self, raised: Raised) -> None:
        limit = (raised.node, raised.window, raised.limit, raised.instead_of, raised.by, raised.at, raised.comment)
        self._cursor.execute(_LIMIT, limit)

    def drop_limit(self, node: str, window: str) -> None:
        self._cursor.execute('DELETE FROM limits WHERE node = ? AND "window" = ?', (node, window))

    # What it came to

    def fold(self, changes: Changes, up_to: int, at: int) -> None:
        """Writes some of `changes`, which were taken after the turn `up_to`, and takes it out of them.

        Everything that the books hold has to be in the journal.
        """
        some = Changes(
            changes.pages[-FOLDED_AT_ONCE:],
            changes.debts[-FOLDED_AT_ONCE:],
            changes.gone[-FOLDED_AT_ONCE:],
            changes.lines[-FOLDED_AT_ONCE:],
            changes.over,
            changes.posts,
        )
        with self._transaction():
            self._write(some, self.seq, up_to, at)
        for each in (changes.pages, changes.debts, changes.gone, changes.lines):
            del each[-FOLDED_AT_ONCE:]
        changes.over, changes.posts = {}, []
        _written(some)

    def drop(self, up_to: int) -> bool:
        """Deletes some of the turns before `up_to`, and returns whether there are more."""
        first = min(self._first + DROPPED_AT_ONCE, up_to)
        self._cursor.execute("DELETE FROM journal WHERE seq < ?", (first,))
        self._first = first
        return first < up_to

    def fold_all(self, taken: Sequence[Changes], at: int) -> None:
        """Writes all of `taken`, in one transaction, whether or not it is in the journal; this is empty afterwards."""
        seq = self.seq + 1
        with self._transaction():
            for changes in taken:
                self._write(changes, seq, seq, at)
            # A turn that could not be written may be there after all: its number is taken here.
            self._cursor.execute(_TURN, (seq, at, _turn(())))
            self._cursor.execute("DELETE FROM journal WHERE seq < ?", (seq,))
            self._cursor.execute("DELETE FROM loans WHERE state = ? AND at < ?", (State.EXPIRED, at - _EXPIRED_KEPT))
        self.seq = self._first = seq
        for changes in taken:
            _written(changes)

    def restore(self, books: Books) -> None:
        """Brings new books, which `find` their pages here, up to date. Raises StateUnusable, too."""
        try:
            for row in self._db.execute("SELECT * FROM limits"):
                raised = Raised(*row)
                books.limits[raised.node, raised.window] = raised
            for number, at, what, count, calls in self._db.execute("SELECT * FROM over ORDER BY number"):
                self._over.append((number, at, count))
                self._remembered += count
                remembered = books.posts if what == Kind.POST else books.ended
                remembered.restore(orjson.loads(calls), State.POSTED if what == Kind.POST else State(what), at)
            loans = {}
            for call, seq, state, at, amount, accounts in self._db.execute("SELECT * FROM loans").fetchall():
                loans[call] = seq
                if call in books.ended:  # a fold did not come as far as here
                    self._cursor.execute("DELETE FROM loans WHERE call = ?", (call,))
                    continue
                debt = Debt(call, None, tuple(orjson.loads(accounts)), (), amount, at)
                debt.state, debt.kept, debt.stale = State(state), True, False
                books.owe(debt)
            self._repeat(books, loans)
        except (ValueError, TypeError, LookupError) as error:
            raise StateUnusable(_damaged(self.path, str(error))) from error

    def _repeat(self, books: Books, loans: dict[str, int]) -> None:
        """Has the books do again what the tables lack; `loans` tells up to which turn these are folded."""
        accounts: dict[str, int] = {}
        lines: dict[Line, int] = {}

        def folded(key: str) -> int:
            if key not in accounts:
                row = self._cursor.execute("SELECT seq FROM accounts WHERE key = ?", (key,)).fetchone()
                accounts[key] = row[0] if row is not None else -1
            return accounts[key]

        def summed(line: Line) -> int:
            if line not in lines:
                row = self._cursor.execute(_LINE_SEQ, line).fetchone()
                lines[line] = row[0] if row is not None else -1
            return lines[line]

        first = None
        for seq, at, steps in self._db.execute("SELECT * FROM journal ORDER BY seq"):
            first = seq if first is None else first
            for step in _steps(steps):
                kind, call, keys, _, _, spent = step
                owed = call not in (books.posts if kind == Kind.POST else books.ended) and loans.get(call, -1) < seq
                lacking = [(line, sums) for line, sums in spent if summed(line) < seq]
                books.again(step, [key for key in keys if folded(key) < seq], owed, lacking, at)
            self.seq = seq
        if first is None:
            raise StateUnusable(_damaged(self.path, "it has lost its last turn"))
        self._first = first

    def _write(self, changes: Changes, seq: int, up_to: int, at: int) -> None:
        cursor = self._cursor
        cursor.executemany(
            _ACCOUNT,
            [(page.key, seq, min(page.posted, _LARGEST), page.pending, page.used) for page in changes.pages],
        )
        cursor.executemany(
            _LOAN,
            [
                (debt.call, seq, debt.state, debt.at, debt.amount, orjson.dumps(debt.keys))
                for debt in changes.debts
                if debt.state is State.PENDING or debt.state is State.EXPIRED
            ],
        )
        cursor.executemany("DELETE FROM loans WHERE call = ?", [(call,) for call in changes.gone])
        cursor.executemany(
            _LINE, [(*line, *[min(number, MOST) for number in sums], up_to) for line, sums in changes.lines]
        )
        for what, calls in (*changes.over.items(), (Kind.POST, changes.posts)):
            if calls:
                self._remember(what, calls, at)

    def _remember(self, what: str, calls: Sequence[str], at: int) -> None:
        number = self._over[-1][0] + 1 if self._over else 0
        row = (number, at, what, len(calls), orjson.dumps(calls))
        self._cursor.execute("INSERT OR REPLACE INTO over VALUES (?, ?, ?, ?, ?)", row)
        self._over.append((number, at, len(calls)))
        self._remembered += len(calls)
        while self._over[0][1] < at - REMEMBERED or (self._remembered > 2 * MOST_REMEMBERED and len(self._over) > 1):
            number, _, count = self._over.popleft()
            self._cursor.execute("DELETE FROM over WHERE number = ?", (number,))
            self._remembered -= count

    # The file

    @property
    def moved(self) -> bool:
        """Whether the file is no longer where it would be looked for."""
        try:
            facts = os.stat(self.path)
        except OSError:
            return True
        return (facts.st_dev, facts.st_ino) != self._file

    def checkpoint(self) -> int:
        """Brings what was written into the database proper and waits for the disk; in any thread. Returns how many
        pages are waiting in the log, those included that are dealt with: it is only begun anew when all are.
        """
        _, waiting, _ = self._checkpoints.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(waiting)

    def sync(self) -> None:
        """Waits until what was written is where a power cut does not take it; in any thread. Raises OSError."""
        log_file = os.open(self.path.with_name(f"{self.path.name}-wal"), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(log_file)
        finally:
            os.close(log_file)

    def close(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        os.close(self._lock)

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        self._connections.append(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT}")
        return connection

    def _prepare(self) -> None:
        db = self._db
        (application,), (version,), (tables,) = (
            db.execute(query).fetchone()
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if tables and application != _APPLICATION:
            raise StateUnusable(f"{self.path} is a database of something else. Name another file as `state`.")
        if version > _VERSION:
            raise StateUnusable(f"{self.path} was written by a newer version of Weighbridge. Install that one.")
        if tables and os.path.getsize(self.path) <= _QUICKLY_CHECKED:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise StateUnusable(_damaged(self.path, found))
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StateUnusable(f"{self.path} is on a file system on which SQLite cannot keep its log. Name another.")
        if not tables:
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        else:
            for earlier in range(max(version, 1), _VERSION):
                db.executescript(f"BEGIN; {_SINCE[earlier]} PRAGMA user_version = {earlier + 1}; COMMIT;")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._cursor.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._cursor.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._cursor.execute("ROLLBACK")
            raise


def _turn(steps: Sequence[Step]) -> bytes:
    """The steps of a turn, each named once that is in several of them: accounts, lines of the cost ledger, steps."""
    accounts: dict[Keys, int] = {}
    lines: dict[Line, int] = {}
    short = [
        (
            kind,
            call,
            accounts.setdefault(keys, len(accounts)),
            pending,
            posted,
            [(lines.setdefault(line, len(lines)), sums) for line, sums in spent] if spent else (),
        )
        for kind, call, keys, pending, posted, spent in steps
    ]
    return orjson.dumps((list(accounts), list(lines), short))


def _steps(turn: bytes) -> Iterator[Step]:
    """What `_turn` was made of. Raises ValueError, TypeError, LookupError for anything else."""
    accounts, lines, steps = orjson.loads(turn)
    for kind, call, keys, pending, posted, spent in steps:
        yield kind, call, tuple(accounts[keys]), pending, posted, [(tuple(lines[line]), sums) for line, sums in spent]


def _written(changes: Changes) -> None:
    for page in changes.pages:
        page.changed = False
    for debt in changes.debts:
        debt.kept, debt.stale = True, False


def _locked(path: Path) -> int:
    """A descriptor of the file beside the database that says who has it. Raises StateUnusable."""
    lock = path.with_name(f"{path.name}-lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable(f"{lock}: {error.strerror}.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        held = isinstance(error, BlockingIOError)
        why = "another process has it. Several share one state on a Redis server" if held else error.strerror
        raise StateUnusable(f"{path}: {why}.", held=held) from None
    return file


def _made(path: Path) -> tuple[int, int]:
    """Makes sure that there is a file that nobody else may read, and returns what identifies it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        facts = os.fstat(file)
    finally:
        os.close(file)
    if not stat.S_ISREG(facts.st_mode):
        raise StateUnusable(f"{path}: this is not a regular file.")
    return facts.st_dev, facts.st_ino


def _damaged(path: Path, how: str) -> str:
    return (
        f"{path} is damaged ({how}). Put a copy in its place, or move it away to begin with nothing spent: "
        "the ledger still has every call."
    )


def _told(path: Path, error: sqlite3.Error | OSError) -> str:
    if isinstance(error, OSError):
        return f"{path}: {error.strerror}."
    if isinstance(error, sqlite3.OperationalError):
        return f"{path} cannot be used: {error}."
    return _damaged(path, str(error))
