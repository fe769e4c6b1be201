"""What a call's loan costs: CPU time to lend and settle in one process, and the way to a Redis server."""

import asyncio
import contextlib
import gc
import itertools
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop
from redis import Redis

from adapters import registry
from adapters.base import Usage
from benchmarks.table import markdown, number, quantile
from config.redis_url import RedisUrl
from config.settings import Settings
from gateway.assembly import assemble
from gateway.exchange import Exchange, Reached
from gateway.lending import Lender
from gateway.state.embedded import EmbeddedStore
from gateway.state.limits import EmbeddedLimits
from gateway.state.redis import RedisStore
from policies.budgets import Account, Ask, Budget, Mode, Spent, account
from policies.money import nano

IN_FLIGHT = (1, 32, 256)
"""Calls at the same time: what they lend and settle in one turn of the event loop shares one write."""
PACE = 500
"""Calls a second while turns are timed, each in a session of its own."""

_PLENTY = nano(9_000_000)
_BUDGETS = (
    Budget("acme", "month", _PLENTY, Mode.ADAPTIVE),
    Budget("acme/support", "day", _PLENTY, Mode.ADAPTIVE),
    Budget("acme/support-bot", "day", _PLENTY, Mode.STRICT),
)
_SESSION = Budget("acme/support-bot", "session", nano(1), Mode.ADAPTIVE)
_WANT, _COST = nano(0.012), nano(0.000261)

_YOUNG_OBJECTS = 20_000
"""As in the worker."""


def ask(call: int, accounts: tuple[Account, ...]) -> Ask:
    return Ask(f"01KA0000000000000{call:09d}", "acme", accounts, _WANT, _COST)


def spent(session: str = "") -> Sequence[Spent]:
    texts = ("2025-11-21", "acme", "support", "support-bot", session, "gpt-4o-mini", "openai", "")
    return (Spent(*texts, 1, 900, 210, 0, _COST),)


def paying(budgets: Sequence[Budget], session: str | None = None) -> tuple[Account, ...]:
    return tuple(account(each, time.time_ns(), session) for each in budgets)


async def lend(store: EmbeddedStore | None, count: int, in_flight: int) -> float:
    """Seconds of CPU time for each call; without a store, those of asking and of one turn of the event loop."""
    accounts = paying(_BUDGETS)
    numbers = iter(range(count))

    async def caller() -> None:
        for call in numbers:
            asked = ask(call, accounts)
            if store is None:
                await asyncio.sleep(0)
                spent()
            else:
                loan = await store.reserve(asked)
                store.settle(loan, _COST, spent())

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (time.process_time() - began) / count


def exchanges(count: int, *, limited: bool) -> Iterator[Exchange]:
    """Calls of 1 KB as they are when the policy has allowed them, to a model with a price."""
    node = "acme/support-bot"
    settings = Settings.model_validate(
        {
            "agents": [{"name": "support-bot", "tenant": "acme", "team": "support", "key": "a-key-that-opens-nothing"}],
            "targets": [
                {
                    "name": "openai",
                    "kind": "openai",
                    "url": "http://127.0.0.1:9/v1",
                    "price": {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.6},
                }
            ],
            "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "openai"}]}],
            "budgets": [
                {"node": budget.node, "window": budget.window, "limit_usd": 9_000_000, "mode": budget.mode.value}
                for budget in _BUDGETS
            ],
            "limits": [{"node": node, "calls_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrent": 10**6}]
            if limited
            else [],
        }
    )
    assembly = assemble(settings)
    agent = assembly.directory.identify(b"Bearer a-key-that-opens-nothing", None)
    endpoint, _ = registry.endpoint(registry.OPENAI, "POST", "/v1/chat/completions")
    arguments = {"model": "gpt-4o-mini", "max_tokens": 200, "messages": [{"role": "user", "content": "hello " * 150}]}
    call = registry.OPENAI.read(endpoint, orjson.dumps(arguments), "")
    (arm,) = assembly.table.match("gpt-4o-mini").arms
    now = time.time_ns()
    for each in range(count):
        x = Exchange(
            f"01KB0000000000000{each:09d}",
            now,
            0.0,
            "POST",
            endpoint.path,
            b"",
            [],
            {},
            frozenset(),
            registry.OPENAI,
            assembly,
        )
        x.agent, x.call, x.arm = agent, call, arm
        yield x


async def carried(store: EmbeddedStore | None, count: int, in_flight: int, *, limited: bool) -> float:
    """Seconds of CPU time for each call's whole money: its size, its price, its limits, lending and settling.

    Without a store, those of a call that is made and of one turn of the event loop.
    """
    lender = Lender(store, EmbeddedLimits()) if store is not None else None
    calls = exchanges(count, limited=limited)

    async def caller() -> None:
        for x in calls:
            if lender is None:
                await asyncio.sleep(0)
                x.usage, x.reached = Usage(230, 120), Reached.ANSWERED
            else:
                await lender.reserve(x)
                x.usage, x.reached = Usage(230, 120), Reached.ANSWERED
                lender.settle(x)

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (time.process_time() - began) / count


@dataclass(frozen=True, slots=True)
class Turns:
    """How long turns of the event loop took, in seconds, in which anything was lent, settled, folded."""

    p50: float
    p999: float
    longest: float
    busiest: float
    """Of CPU time: what is longer than this was waiting for a disk, or for others who use the machine."""


async def turns(store: EmbeddedStore, seconds: float) -> Turns:
    """Calls come at PACE, and the event loop turns as fast as it can."""
    ends = asyncio.get_running_loop().time() + seconds
    settled: set[asyncio.Task[None]] = set()

    async def one(call: int) -> None:
        session = f"s-{call}"
        loan = await store.reserve(ask(call, paying((*_BUDGETS, _SESSION), session)))
        store.settle(loan, _COST, spent(session))

    async def come() -> None:
        for call in itertools.count():
            due = ends - seconds + call / PACE
            if due > ends:
                return
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            task = asyncio.create_task(one(call))
            settled.add(task)
            task.add_done_callback(settled.discard)

    coming = asyncio.create_task(come())
    took = Counter[int]()  # microseconds: a list of millions of turns would hold the last of them up itself
    longest = busiest = 0.0
    before, used_before = time.perf_counter(), time.thread_time()
    while not coming.done() or settled:
        await asyncio.sleep(0)
        now, used = time.perf_counter(), time.thread_time()
        took[int((now - before) * 1e6)] += 1
        longest, busiest = max(longest, now - before), max(busiest, used - used_before)
        before, used_before = now, used
    return Turns(_share(took, 0.5), _share(took, 0.999), longest, busiest)


def _share(took: Counter[int], share: float) -> float:
    """The seconds that `share` of all turns did not take."""
    ordered = sorted(took.items())
    up_to = itertools.accumulate(count for _, count in ordered)
    return next(us for (us, _), seen in zip(ordered, up_to, strict=True) if seen >= share * took.total()) / 1e6


async def _measured(folder: Path, count: int, seconds: float) -> str:
    rows = []
    for in_flight in IN_FLIGHT:
        store = EmbeddedStore(folder / f"{in_flight}.db")
        alone = await lend(store, count, in_flight) - await lend(None, count, in_flight)
        made = await carried(None, count, in_flight, limited=False)
        paid = await carried(store, count, in_flight, limited=False) - made
        await store.close()
        store = EmbeddedStore(folder / f"{in_flight}-limited.db")
        limited = await carried(store, count, in_flight, limited=True) - made
        await store.close()
        rows.append((str(in_flight), *(number(each * 1e6) for each in (alone, paid, limited)), f"{count:,}"))
    table = markdown(("calls at once", "the store alone", "a call's money", "and its limits", "calls"), rows)
    store = EmbeddedStore(folder / "paced.db")
    found = await turns(store, seconds)
    await store.close()
    return (
        f"Microseconds of CPU time, each with three accounts:\n\n{table}\n\n"
        f"At {PACE} calls a second for {seconds:.0f} s, each in a new session, one turn of the event loop took "
        f"{found.p50 * 1e6:.0f} us (median), {found.p999 * 1e3:.2f} ms (99.9 %), "
        f"{found.longest * 1e3:.2f} ms (longest), of CPU time {found.busiest * 1e3:.2f} ms at most."
    )


async def _on_a_server(port: int, count: int) -> str:
    """One call after the other on a Redis server: what a call waits, and how often the server is asked."""
    store = RedisStore(RedisUrl.parse(f"redis://127.0.0.1:{port}/0"))
    accounts = paying(_BUDGETS)
    waited = []
    await store.balances(accounts)  # connected, and the scripts are there
    with Redis(port=port, protocol=2, decode_responses=True) as server:
        server.config_resetstat()
        used = time.process_time()
        for call in range(count):
            began = time.perf_counter()
            loan = await store.reserve(ask(call, accounts))
            waited.append(time.perf_counter() - began)
            store.settle(loan, _COST, spent())
        used = time.process_time() - used
        await store.close()
        evaluated = server.info("commandstats")["cmdstat_evalsha"]
    row = (
        number(quantile(waited, 0.5) * 1e6),
        number(quantile(waited, 0.99) * 1e6),
        number(evaluated["usec_per_call"]),
        number(evaluated["calls"] / count),
        number(used / count * 1e6),
        f"{count:,}",
    )
    head = ("p50 us to lend", "p99 us", "server us a step", "steps a call", "our CPU us a call", "calls")
    return markdown(head, [row])


def on_a_server(folder: Path, count: int) -> str:
    """The table for a Redis server that is started for it and keeps nothing; what is missing, where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        return "redis-server is not installed."
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                if server.poll() is not None:
                    return "redis-server does not start."
                time.sleep(0.01)
            return uvloop.run(_on_a_server(port, count))
        finally:
            server.terminate()


def run(folder: Path, count: int, seconds: float) -> str:
    """Both tables, in Markdown: three accounts a call, everything journalled to a file in `folder`."""
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    gc.collect()
    gc.freeze()
    own = uvloop.run(_measured(folder, count, seconds))
    return f"{own}\n\nOn a Redis server, one call after the other:\n\n{on_a_server(folder, count // 10)}"
