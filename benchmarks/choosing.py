"""What a call's way costs: to choose its arm and its node, and to count what the arm has met with, in one process."""

import gc
import time
from collections.abc import Callable
from typing import Any

from adapters.base import Usage
from benchmarks.machine import LOAD_CORE, on
from benchmarks.table import markdown, number
from gateway.traffic import Traffic
from routing.health import Fleet
from routing.outcomes import OUTCOMES
from routing.table import sticky_key
from tests.support.tried import NOON, Counted, Try, routes, tried

ARMS = (1, 2, 5, 20)
"""Arms of the route: with one, there is nothing to choose."""
NODES = (1, 8)
"""Nodes of the target that is chosen."""

_SESSIONS = 1000
_CALLS = 200


def run(rounds: int) -> str:
    """The table, in Markdown: the best of so many rounds, since whatever disturbs one only makes it longer."""
    gc.collect()
    gc.freeze()
    with on(LOAD_CORE):
        chosen = [[str(arms), *(number(_best(each, rounds)) for each in _choosing(arms))] for arms in ARMS]
        taken = [[str(nodes), number(_best(_attempt(nodes), rounds))] for nodes in NODES]
        counted = [[kind, number(_best(_counting(name, tries), rounds))] for kind, name, tries in _KINDS]
    return "\n\n".join(
        (
            "Microseconds of CPU time, to choose:",
            markdown(("arms", "the same session always", "another one each time"), chosen),
            "to take a node and give it back:",
            markdown(("nodes", "us"), taken),
            "and to count what became of the call:",
            markdown(("call", "us"), counted),
        )
    )


_USAGE = Usage(input_tokens=900, output_tokens=210)
_KINDS = (
    ("answered, one arm", 1, (Try("openai", cost=261_000, usage=_USAGE),)),
    ("answered, two arms", 2, (Try("openai", cost=261_000, usage=_USAGE),)),
    ("failed, then answered", 2, (Try("parallax", "connect"), Try("openai", cost=261_000, usage=_USAGE))),
)


def _targets(count: int) -> dict[str, Any]:
    names = ["openai", "parallax", *(f"target-{index}" for index in range(2, count))][:count]
    return {
        "targets": [{"name": name, "kind": "openai", "url": "http://127.0.0.1:9"} for name in names],
        "arms": [{"target": name, "weight": 100 / count} for name in names],
    }


def _choosing(arms: int) -> tuple[Callable[[], int], Callable[[], int]]:
    table = routes(**_targets(arms)).table

    def choose(session: str) -> None:
        route = table.match("m")
        weights = route.weights
        if weights.settled("openai", "chat") is None:
            key = sticky_key("acme", "support-bot", session)
            weights.order("openai", "chat", route.point(key) if key is not None else 0)

    def same() -> int:
        for _ in range(_SESSIONS):
            choose("a-session")
        return _SESSIONS

    sessions = [f"session-{index}" for index in range(_SESSIONS)]

    def another() -> int:
        for session in sessions:
            choose(session)
        return _SESSIONS

    return same, another


def _attempt(nodes: int) -> Callable[[], int]:
    under = routes(
        targets=[
            {"name": "openai", "kind": "openai", "urls": [f"http://127.0.0.1:{9 + each}" for each in range(nodes)]}
        ],
        arms=[{"target": "openai"}],
    )
    fleet = Fleet()
    fleet.under(under.settings.targets, under.table.routes)
    arms, ok = under.table.match("m").order("openai", "chat", 0), OUTCOMES["ok"]

    def attempt() -> int:
        for _ in range(_SESSIONS):
            pick = fleet.pick(arms, 100.0)
            assert pick is not None, "a node that is well takes calls"
            fleet.ended(pick, ok, 100.0, 200)
        return _SESSIONS

    return attempt


def _counting(arms: int, tries: tuple[Try, ...]) -> Callable[[], int]:
    under = routes(**_targets(arms))
    calls = [tried(under, *tries, at=NOON, session=f"session-{index}") for index in range(_CALLS)]
    traffic = Traffic(Counted(), NOON - 60)

    def count() -> int:
        for call in calls:
            traffic.observe(call)
        return _CALLS

    return count


def _best(work: Callable[[], int], rounds: int) -> float:
    """Microseconds of CPU time for each of what one round of work does."""
    work()
    took = []
    for _ in range(rounds):
        began = time.thread_time()
        done = work()
        took.append((time.thread_time() - began) / done)
    return min(took) * 1e6
