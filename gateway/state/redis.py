"""Budgets that several gateways share: accounts, loans and the cost ledger on a Redis server or cluster.

Each step is one script and one round trip. The server's time is the only clock: it decides what a window is and when a
lease is over, whatever the clocks of gateways say. All keys of a tenant have its name as their hash tag:

    wb:{t:acme}:account:NODE|WINDOW|ID   hash  posted, pending
    wb:{t:acme}:loan:CALL                hash  state, amount, wish, accounts; kept an hour after its end
    wb:{t:acme}:post:CALL                text  that the cost of a call without a loan was posted; kept an hour
    wb:{t:acme}:leases                   zset  call -> when its lease is over, of all that is pending
    wb:{t:acme}:limits                   hash  NODE|WINDOW -> limit:instead_of:JSON, of limits that people have set
    wb:{t:acme}:sessions:NODE            zset  session -> when it was last used
    wb:{t:acme}:ledger:DAY               hash  dimensions as JSON -> sums, for 400 days
    wb:{t:}:tenants                      set   every tenant

How durable an answered step is, the server's configuration decides; a gateway cannot make it more so. With `appendonly
yes` and `appendfsync always` it survives everything but the disk. With `everysec`, the default of the append-only file,
a crash of the machine takes up to two seconds of steps along, a crash of the process none. Without an append-only file,
all since the last snapshot is gone. A replica learns of a step after it was answered, so that a failover loses the last
of them: some milliseconds, more where the replica lags; `min-replicas-max-lag` sets a bound, WAIT would only make it
rarer. A loan that was lost is one that no account knows of any more, and as much as that can be lent once again. What
its call has cost is posted all the same when it is settled, as long as its gateway lives. Nothing may be evicted
(`maxmemory-policy noeviction`): accounts would begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final

from config.redis_url import RedisUrl
from gateway.state.redis_outbox import CLOSING, Outbox, Step, Words
from gateway.state.redis_scripts import Scripts, packed
from gateway.state.redis_servers import RedisServers, tag
from gateway.state.redis_wire import PATIENCE, PAUSE, Reply
from policies import budgets
from policies.budgets import (
    DIMENSIONS,
    LEASE,
    METRICS,
    RENEW,
    Account,
    Ask,
    Balance,
    Budget,
    Conflict,
    Loan,
    Raised,
    Short,
    Spent,
    StoreUnavailable,
    Window,
)
from policies.money import MOST

log = logging.getLogger("weighbridge.state")

FRESH: Final = 1.0
"""Seconds for which it is known how an account stands."""

_MICRO: Final = 1_000_000
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR

_ENDED_KEPT: Final = (_HOUR + 600) * 1000
_EXPIRED_KEPT: Final = 25 * _HOUR * 1000
"""Milliseconds for which it is known that a loan has ended; longer where its truth may still come."""
_SURELY_KNOWN: Final = 23 * _HOUR * _MICRO
"""Microseconds after it was lent within which a loan that the server does not know is one that it has lost."""

_KEPT: Final[dict[Window, int]] = {"session": 35 * _DAY, "day": 35 * _DAY, "month": 70 * _DAY}
"""Seconds for which an account is kept after it was last used."""
_LEDGER_KEPT: Final = 400 * _DAY
_MOST_LISTED: Final = 1000
"""Sessions of a budget that are listed."""

_EXPIRE_EVERY: Final = 5.0
"""Seconds between two looks for loans that nobody has renewed, of a hundred tenants or a sixth of them."""
_MOST_EXPIRED: Final = 64
_TENANTS: Final = 100
_MOST_RENEWED: Final = 500
_AT_ONCE: Final = 50
"""Days of the cost ledger that are read together."""
_PAGE: Final = 1000
_STALE_TRIES: Final = 3
_MOST_MIRRORED: Final = 10_000

_GROUPED: Final = DIMENSIONS[2:]
"""Dimensions that are not told by the key."""


@dataclass(frozen=True, slots=True)
class _Lent:
    """A loan of this gateway. `at` is when it was lent, by the server's clock, in microseconds."""

    tenant: str
    at: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """How an account stood. `limit` was in force in place of `configured`."""

    at: float
    configured: int
    limit: int
    posted: int
    pending: int


class RedisStore:
    """Implements `policies.budgets.Store`.

    What a call waits for comes within 250 ms or is StoreUnavailable; after that it is so at once, until the server was
    reached again in the background. What it does not wait for is tried until it is done, for as long as this process
    lives. A window of the wrong day, because this machine's clock is wrong or midnight was meanwhile, is corrected by
    asking again: the loan says in its accounts what was lent from.
    """

    shared = True

    def __init__(
        self,
        url: RedisUrl,
        *,
        clock: Callable[[], int] = time.time_ns,
        scripts: Scripts | None = None,
        patience: float = PATIENCE,
        pause: float = PAUSE,
    ) -> None:
        """`clock` gives this machine's Unix nanoseconds. Nothing is connected before `begin`, or the first use."""
        self.servers = RedisServers(url, clock=clock, scripts=scripts, patience=patience, pause=pause)
        self.outbox = Outbox(self.servers, self._heard)
        self._scripts = self.servers.scripts
        self._lent: dict[str, _Lent] = {}
        self._seen: dict[str, _Seen] = {}
        self._enlisted: dict[str, asyncio.Future[Reply]] = {}
        self._cursor = "0"
        self._tending: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str | None:
        return self.servers.failure

    def now_ns(self) -> int:
        return self.servers.clock.now_ns()

    def begin(self) -> None:
        """Begins to connect, to renew what is lent, and to expire what others have left. Needs a running event loop."""
        if self._tending is None:
            self.servers.begin()
            self.outbox.begin()
            self._tending = asyncio.create_task(self._tend(), name="leases of the state")

    async def reserve(self, ask: Ask) -> Loan:
        self.begin()
        self._enlist(ask.tenant)
        key = tag(ask.tenant)
        accounts = ask.accounts
        try:
            for _ in range(_STALE_TRIES):
                keys = [f"{key}loan:{ask.call}", f"{key}leases", f"{key}limits", *_keys(key, accounts)]
                wish = {
                    "call": ask.call,
                    "want": min(ask.want, MOST),
                    "least": ask.least,
                    "lease": int(LEASE * _MICRO),
                    "most_listed": _MOST_LISTED,
                    "accounts": _facts(key, accounts, keys),
                }
                status, *reply = await self.servers.run(ask.tenant, self._scripts.reserve, keys, wish)
                self.servers.clock.heard(reply[0])
                if status != b"STALE":
                    break
                accounts = _current(accounts, self.now_ns())
        except asyncio.CancelledError:
            self.void(Loan(ask.call, ask.tenant, accounts, 0))
            raise
        match status:
            case b"OK":
                now, amount, standings, limits = reply
                self._lent[ask.call] = _Lent(ask.tenant, now)
                return Loan(ask.call, ask.tenant, accounts, amount, tuple(self._balances(accounts, standings, limits)))
            case b"SHORT":
                _, tightest, contended, standings, limits = reply
                raise Short(self._balances(accounts, standings, limits)[tightest - 1], contended == 1)
            case b"STALE":
                raise StoreUnavailable("the server's clock does not stand still")
            case _:
                raise Conflict(f"call {ask.call} has asked before, for something else, or is settled")

    async def extend(self, loan: Loan, amount: int) -> bool:
        self.begin()
        key = tag(loan.tenant)
        keys = [f"{key}loan:{loan.call}", f"{key}leases", f"{key}limits", *_keys(key, loan.accounts)]
        wish = {
            "call": loan.call,
            "amount": min(amount, MOST),
            "lease": int(LEASE * _MICRO),
            "accounts": _facts(key, loan.accounts),
        }
        status, now, lent, standings, limits = await self.servers.run(loan.tenant, self._scripts.extend, keys, wish)
        self.servers.clock.heard(now)
        self._balances(loan.accounts, standings, limits)
        if status != b"OK":
            return False
        loan.amount = lent
        return True

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        words = partial(_settling, loan, cost, spent)
        self._put(Step(loan.tenant, self._scripts.settle, loan.accounts, self._forget(loan), words))

    def void(self, loan: Loan) -> None:
        words = partial(_voiding, loan)
        self._put(Step(loan.tenant, self._scripts.void, loan.accounts, self._forget(loan), words))

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        words = partial(_posting, call, tenant, accounts, cost, spent)
        self._put(Step(tenant, self._scripts.post, accounts, MOST, words))

    def _put(self, step: Step) -> None:
        self.begin()
        self.outbox.put(step)

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        self.begin()
        of_tenants: dict[str, list[Account]] = defaultdict(list)
        for account in accounts:
            of_tenants[_tenant(account)].append(account)
        found: dict[str, Balance] = {}
        for balances in await asyncio.gather(*(self._look(*each) for each in of_tenants.items())):
            found |= {balance.account.key: balance for balance in balances}
        return [found[account.key] for account in accounts]

    async def _look(self, tenant: str, accounts: Sequence[Account]) -> list[Balance]:
        key = tag(tenant)
        wish = {"accounts": _facts(key, accounts)}
        _, now, standings, limits = await self.servers.run(
            tenant, self._scripts.look, [f"{key}limits", *_keys(key, accounts)], wish
        )
        self.servers.clock.heard(now)
        return self._balances(accounts, standings, limits)

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        since = time.monotonic() - FRESH
        found = []
        for account in accounts:
            seen = self._seen.get(account.key)
            if seen is None or seen.at < since or seen.configured != account.budget.limit:
                return None
            found.append(Balance(account, seen.limit, seen.posted, seen.pending))
        return found

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        self.begin()
        tenant = budget.node.partition("/")[0]
        listed = await self.servers.command(tenant, "ZREVRANGE", _list(tag(tenant), budget), 0, max(most, 1) - 1)
        windows = [each.decode() for each in listed[:most]]
        return await self.balances([Account(budget, each, f"{budget.node}|session|{each}") for each in windows])

    async def raise_limit(self, raised: Raised) -> None:
        self.begin()
        tenant = raised.node.partition("/")[0]
        said = json.dumps({"by": raised.by, "at": raised.at, "comment": raised.comment})
        value = f"{raised.limit}:{raised.instead_of}:{said}"
        await self.servers.command(tenant, "HSET", f"{tag(tenant)}limits", f"{raised.node}|{raised.window}", value)

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        self.begin()
        await self.servers.command(tenant, "HDEL", f"{tag(tenant)}limits", f"{node}|{window}")

    async def raised(self, tenant: str) -> list[Raised]:
        self.begin()
        found = await self.servers.command(tenant, "HGETALL", f"{tag(tenant)}limits")
        return sorted(map(_raised, found[::2], found[1::2]), key=lambda each: (each.node, each.window))

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        self.begin()
        today = datetime.fromtimestamp(self.now_ns() // 1_000_000_000, UTC).date()
        first = max(date.fromisoformat(since), today - timedelta(days=_LEDGER_KEPT // _DAY + 1))
        last = min(date.fromisoformat(until), today + timedelta(days=1))
        days = [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]
        wanted = [(tenant, day) for tenant in dict.fromkeys(tenants) for day in days]
        sums: dict[tuple[str, ...], list[int]] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            for (tenant, day), rows in zip(
                some, await asyncio.gather(*(self._rows(*each) for each in some)), strict=True
            ):
                for texts, amounts in rows:
                    row = dict(zip(DIMENSIONS, (day, tenant, *texts), strict=True))
                    if all(row[name] == value for name, value in where.items()):
                        group = tuple(row[name] for name in group_by)
                        known = sums.setdefault(group, [0] * len(METRICS))
                        sums[group] = [one + more for one, more in zip(known, amounts, strict=True)]
        return [
            {**dict(zip(group_by, group, strict=True)), **dict(zip(METRICS, sums[group], strict=True))}
            for group in sums
        ]

    async def _rows(self, tenant: str, day: str) -> Iterable[tuple[list[str], list[int]]]:
        """Dimensions and metrics of one day. What is written meanwhile may be among them or not."""
        cursor, found = "0", dict[bytes, bytes]()
        while True:
            cursor, page = await self.servers.command(
                tenant, "HSCAN", f"{tag(tenant)}ledger:{day}", cursor, "COUNT", _PAGE
            )
            found.update(zip(page[::2], page[1::2], strict=True))
            if cursor == b"0":
                return [(json.loads(texts), [int(each) for each in sums.split(b":")]) for texts, sums in found.items()]

    async def close(self, within: float = CLOSING) -> None:
        """As of the protocol; `within` is how many seconds it may take to settle what is not settled yet."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])
        await self.outbox.close(within)
        await self.servers.close()

    async def expire(self) -> int:
        """Posts loans whole that nobody has renewed, of some tenants, others each time; of those whose servers answer.

        Raises StoreUnavailable when it is not known which tenants there are.
        """
        tenants = f"{tag('')}tenants"
        most = max(_TENANTS, int(await self.servers.command("", "SCARD", tenants)) // 6)
        self._cursor, page = await self.servers.command("", "SSCAN", tenants, self._cursor, "COUNT", most)
        expired = 0
        for tenant in map(bytes.decode, page):
            with contextlib.suppress(StoreUnavailable):
                expired += await self._expire(tenant)
        if expired:
            log.warning("%d loans were posted whole, because no gateway has come back for them", expired)
        return expired

    async def _expire(self, tenant: str) -> int:
        key = tag(tenant)
        wish = {"loans": f"{key}loan:", "most": _MOST_EXPIRED, "kept": _EXPIRED_KEPT}
        expired, some = 0, _MOST_EXPIRED
        while some == _MOST_EXPIRED:
            _, _, some = await self.servers.run(tenant, self._scripts.expire, [f"{key}leases"], wish)
            expired += int(some)
        return expired

    async def renew(self) -> None:
        """Renews the leases of all that this gateway has lent, as far as servers answer."""
        of_tenants: dict[str, list[str]] = defaultdict(list)
        for call, lent in self._lent.items():
            of_tenants[lent.tenant].append(call)
        if of_tenants:  # a server that was lost does not know them any more
            with contextlib.suppress(StoreUnavailable):
                await self.servers.command("", "SADD", f"{tag('')}tenants", *of_tenants)
        for tenant, calls in of_tenants.items():
            with contextlib.suppress(StoreUnavailable):
                for start in range(0, len(calls), _MOST_RENEWED):
                    wish = {"lease": int(LEASE * _MICRO), "calls": calls[start : start + _MOST_RENEWED]}
                    await self.servers.run(tenant, self._scripts.renew, [f"{tag(tenant)}leases"], wish)

    async def _tend(self) -> None:
        """Keeps what is lent, expires what is left, and notices servers that are gone without a word."""
        now = time.monotonic()
        renewing = now + RENEW
        while True:
            await asyncio.sleep(min(_EXPIRE_EVERY, max(renewing - time.monotonic(), 0)))
            with contextlib.suppress(StoreUnavailable):
                try:
                    if time.monotonic() >= renewing:
                        renewing = time.monotonic() + RENEW
                        await self.renew()
                    await self.servers.tell()
                    await self.expire()
                except StoreUnavailable:
                    raise
                except Exception as error:
                    log.error("the leases of the state were not tended", exc_info=error)

    def _enlist(self, tenant: str) -> None:
        """Notes a tenant, so that every gateway looks after what it was lent.

        It goes out before the wish for a loan. By one connection it arrives before it, too, or neither does: a loan of
        which nobody knows would be pending for ever if its gateway died. In a cluster it may fail by itself; then
        whoever asks next does it again, and most of all who is refused because of such a loan.
        """
        noted = self._enlisted.get(tenant)
        if noted is None or (noted.done() and isinstance(noted.result(), Exception)):
            self._enlisted[tenant] = self.servers.ask("", packed("SADD", f"{tag('')}tenants", tenant))

    def _forget(self, loan: Loan) -> int:
        """Renews a loan no more. Gives until when the server must know what has become of it."""
        lent = self._lent.pop(loan.call, None)
        return (lent.at if lent is not None else self.now_ns() // 1000) + _SURELY_KNOWN

    def _heard(self, step: Step, reply: list[Any]) -> None:
        """Takes note of what a settlement says."""
        _, now, standings = reply
        self.servers.clock.heard(now)
        at = time.monotonic()
        for account, (posted, pending) in zip(step.accounts, standings, strict=True):
            seen = self._seen.get(account.key)
            if seen is not None and at - seen.at < FRESH:  # else it is not known which limit is in force
                self._seen[account.key] = _Seen(seen.at, seen.configured, seen.limit, posted, pending)

    def _balances(self, accounts: Sequence[Account], standings: Any, limits: Sequence[int]) -> list[Balance]:
        """What a script tells of accounts, which is known from now on."""
        at = time.monotonic()
        if len(self._seen) > _MOST_MIRRORED:
            self._seen = {key: seen for key, seen in self._seen.items() if at - seen.at < FRESH}
        found = []
        for account, (posted, pending), limit in zip(accounts, standings, limits, strict=True):
            self._seen[account.key] = _Seen(at, account.budget.limit, limit, posted, pending)
            found.append(Balance(account, limit, posted, pending))
        return found


def _tenant(account: Account) -> str:
    return account.budget.node.partition("/")[0]


def _keys(key: str, accounts: Sequence[Account]) -> list[str]:
    return [f"{key}account:{account.key}" for account in accounts]


def _list(key: str, budget: Budget) -> str:
    return f"{key}sessions:{budget.node}"


def _facts(key: str, accounts: Sequence[Account], keys: list[str] | None = None) -> list[dict[str, Any]]:
    """What scripts have to know of accounts. Where `keys` are given, those of lists of sessions are added."""
    facts = []
    for account in accounts:
        budget = account.budget
        fact: dict[str, Any] = {
            "hard": account.hard,
            "limit": budget.limit,
            "field": f"{budget.node}|{budget.window}",
            "window": account.window_id,
            "checked": account.window_id[0] != "=",
            "kept": _KEPT[budget.window],
        }
        if keys is not None and budget.window == "session":
            keys.append(_list(key, budget))
            fact["list"] = len(keys)
        facts.append(fact)
    return facts


def _settling(loan: Loan, cost: int, spent: Sequence[Spent]) -> Words:
    key = tag(loan.tenant)
    keys = [f"{key}loan:{loan.call}", f"{key}leases", *_keys(key, loan.accounts)]
    return keys, {"call": loan.call, **_costs(key, loan.accounts, cost, spent, keys)}


def _voiding(loan: Loan) -> Words:
    key = tag(loan.tenant)
    keys = [f"{key}loan:{loan.call}", f"{key}leases", *_keys(key, loan.accounts)]
    return keys, {"call": loan.call, "kept": _ENDED_KEPT}


def _posting(call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> Words:
    key = tag(tenant)
    keys = [f"{key}post:{call}", *_keys(key, accounts)]
    return keys, _costs(key, accounts, cost, spent, keys)


def _costs(key: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent], keys: list[str]) -> dict[str, Any]:
    """What scripts have to know of what a call has cost. Keys that they need for it are added to `keys`."""
    return {
        "cost": _possible(cost),
        "kept": _ENDED_KEPT,
        "ledger_kept": _LEDGER_KEPT,
        "most_listed": _MOST_LISTED,
        "accounts": _facts(key, accounts, keys),
        "spent": _lines(key, spent, keys),
    }


def _lines(key: str, spent: Sequence[Spent], keys: list[str]) -> list[dict[str, Any]]:
    """Lines of the cost ledger for a script; those of one kind as one. Keys of their days are added to `keys`."""
    sums: dict[tuple[str, str], list[int]] = {}
    for each in spent:
        texts = [_text(getattr(each, name)) for name in _GROUPED]
        amounts = [_possible(getattr(each, name)) for name in METRICS]
        line = (each.day, json.dumps(texts, separators=(",", ":")))
        known = sums.get(line)
        sums[line] = amounts if known is None else [one + more for one, more in zip(known, amounts, strict=True)]
    places: dict[str, int] = {}
    for day, _ in sums:
        if day not in places:
            keys.append(f"{key}ledger:{day}")
            places[day] = len(keys)
    return [{"key": places[day], "dimensions": texts, "metrics": sums[day, texts]} for day, texts in sums]


def _possible(amount: int) -> int:
    """An amount that can be kept. What a target says of itself may be anything."""
    return max(0, min(amount, MOST))


def _text(text: str) -> str:
    """A text that can be kept: JSON can name half of a pair of surrogates, which UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _current(accounts: Iterable[Account], now_ns: int) -> tuple[Account, ...]:
    """The same budgets' accounts in the windows of now."""
    return tuple(
        each if each.window_id.startswith("=") else budgets.account(each.budget, now_ns, None) for each in accounts
    )


def _raised(field: bytes, value: bytes) -> Raised:
    node, _, window = field.decode().partition("|")
    limit, instead_of, said = value.decode().split(":", 2)
    facts = json.loads(said)
    return Raised(node, window, int(limit), int(instead_of), facts["by"], facts["at"], facts["comment"])  # type: ignore[arg-type]
