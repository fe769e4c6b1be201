"""A call that was tried at targets, as the pipeline leaves it, and a place where what it met with is counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from adapters.base import Usage
from gateway.assembly import Assembly
from gateway.exchange import Attempt, Exchange
from routing.course import Bucket, Course
from routing.health import Node, Pick, Pool
from routing.outcomes import OUTCOMES
from routing.table import Arm
from tests.support.exchanges import assembly, exchange

NOON: Final = 1_763_726_400
"""2025-11-21, 12:00 UTC."""
BEGAN: Final = 100.0
"""When every call here begins, by the monotonic clock."""

_PRICE: Final = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}

TARGETS: Final[Sequence[Mapping[str, Any]]] = (
    {"name": "openai", "kind": "openai", "url": "http://127.0.0.1:9", "price": _PRICE},
    {"name": "parallax", "kind": "parallax", "url": "http://127.0.0.1:9", "price": _PRICE},
    {"name": "claude", "kind": "anthropic", "url": "http://127.0.0.1:9"},
)


class Counted:
    """A `routing.course.RouteStore` that only counts."""

    shared = False
    failure: str | None = None
    heard_ns = 0

    def __init__(self) -> None:
        self.sums: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def begin(self) -> None:
        return None

    async def courses(self) -> Mapping[str, Course]:
        return {}

    async def steer(self, route: str, course: Course, expected_epoch: int) -> bool:
        raise NotImplementedError("nothing is steered where calls are counted")

    def count(self, route: str, counts: Mapping[str, int]) -> None:
        sums = self.sums[route]
        for key, number in counts.items():
            sums[key] = sums.get(key, 0) + number

    async def flush(self) -> None:
        return None

    async def buckets(self, route: str, since: int, until: int) -> list[Bucket]:
        return []

    async def close(self) -> None:
        return None


class Try(NamedTuple):
    """One attempt: `took` seconds, its first token after `first` of them; `cost` in nano-dollars."""

    target: str
    outcome: str = "ok"
    took: float = 1.0
    first: float | None = None
    cost: int = 0
    usage: Usage | None = None


def routes(**chat: Any) -> Assembly:
    """A route `chat` over two arms, or as given, and the `targets` of TARGETS, or as given."""
    arms = [{"target": "openai", "weight": 90}, {"target": "parallax", "weight": 10}]
    targets = chat.pop("targets", TARGETS)
    return assembly(targets=targets, routes=[{"name": "chat", "models": ["*"], "arms": arms, **chat}])


def tried(
    under: Assembly,
    *tries: Try,
    at: float = NOON,
    session: str | None = None,
    stream: bool = False,
    meant: str | None = None,
    full: bool = False,
    headers: Sequence[tuple[bytes, bytes]] = (),
    said: str = "hello",
) -> Exchange:
    """A call that arrived at `at`, in seconds since the epoch, and is over.

    It was `meant` for another arm than its first attempt's, which was `full` or out of service.
    """
    x = exchange(arguments={"model": "m", "messages": [{"role": "user", "content": said}]}, session=session)
    assert x.call is not None, "an exchange of the tests has a call"
    x.assembly, x.route = under, under.table.match("m")
    x.arrived_ns, x.began, x.headers, x.call.stream = int(at * 1e9), BEGAN, list(headers), stream
    arms = {arm.target.name: arm for arm in x.route.arms}
    first = meant or (tries[0].target if tries else "openai")
    x.meant = arms[first]
    x.order = [arms[first], *(arm for name, arm in arms.items() if name != first)]
    now = BEGAN
    for each in tries:
        index = list(x.order).index(arms[each.target])
        attempt = Attempt(pick(arms[each.target], index, full=full and index > 0 and not x.attempts), now)
        attempt.first_byte_at = now + each.first if each.first is not None else None
        now = attempt.ended = now + each.took
        attempt.outcome, attempt.cost, attempt.usage = OUTCOMES[each.outcome], each.cost, each.usage
        x.attempts.append(attempt)
        x.arm = attempt.arm
    x.ended = now
    return x


def pick(arm: Arm, index: int = 0, *, full: bool = False) -> Pick:
    return Pick(arm, Node(arm.target.name, "http://127.0.0.1:9"), index, full, False, Pool(arm.target.name))
