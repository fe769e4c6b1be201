"""What the admin API tells of routes: arms with their figures and health, how they compare, and what may be asked."""

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from adapters.base import Usage
from config.load import load
from config.settings import TargetSettings
from gateway.admin import admin_app
from gateway.admin.route_views import health, nodes_out, utc
from gateway.admin.routes import baseline
from gateway.app import App
from routing.health import Fleet, Node, Pool, State
from tests.support.door import door
from tests.support.tried import TARGETS, Try, routes, tried

TOKEN = {"authorization": "Bearer sams-own-token"}
USAGE = Usage(input_tokens=1000, output_tokens=100)


@dataclass
class Room:
    """A gateway that nobody calls, and what its admin API tells."""

    app: App
    client: httpx2.AsyncClient

    async def get(self, path: str) -> Any:
        answer = await self.client.get(path, headers=TOKEN)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def met(self, *tries: Try, ago: float = 0.0, times: int = 1, **more: Any) -> None:
        """So many calls that were tried so, and ended so many seconds ago."""
        x = tried(self.app.pipeline.assembly, *tries, **more)
        x.arrived_ns = int((self.app.traffic.since + 7200 - ago - (x.ended - x.began)) * 1e9)
        for _ in range(times):
            self.app.traffic.observe(x)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """The gateway has begun two hours ago."""
    config = {
        "admin": {"people": [{"name": "sam", "token": "sams-own-token"}]},
        "state": f"sqlite:///{tmp_path}/state.db",
        "ledger": {"path": str(tmp_path / "ledger")},
        "agents": [{"name": "support-bot", "key": "support-bots-own-key"}],
        "targets": [dict(each) for each in TARGETS],
        "routes": [
            {
                "name": "chat",
                "models": ["*"],
                "arms": [{"target": "openai", "weight": 90}, {"target": "parallax", "weight": 10}],
                "rollout": {"canary": "parallax"},
                "mirror": {"target": "claude", "share": 0.1},
            },
            {"name": "alone", "models": ["x"], "arms": [{"target": "claude", "model": "opus"}]},
        ],
    }
    path = tmp_path / "w.yaml"
    path.write_text(orjson.dumps(config).decode())  # which is YAML, too
    app = App(path, load(path))
    app.traffic.since -= 7200
    await app.steering.hear()
    try:
        async with door(admin_app(app)) as port:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield Room(app, client)
    finally:
        await app.__aexit__()


async def test_arms_are_told_with_what_they_met_with(room: Room) -> None:
    room.met(Try("openai", took=2.0, first=0.5, cost=1_000_000, usage=USAGE), stream=True, times=40)
    room.met(Try("parallax", took=1.0, cost=100_000, usage=USAGE), times=9)
    room.met(Try("parallax", "capacity"), Try("openai", took=2.0, first=0.5, cost=1_000_000, usage=USAGE), stream=True)
    room.met(Try("openai", took=2.0, first=0.5, cost=1_000_000, usage=USAGE), stream=True, meant="parallax")
    told = await room.get("/routes/chat")
    openai, parallax = told["arms"]
    assert (openai["calls"], openai["errors"], openai["cost_usd"], openai["cost_per_call_usd"]) == (42, 0, 0.042, 0.001)
    assert openai["p95_ms"] == pytest.approx(2000, rel=0.032)
    assert openai["first_token_ms"]["p50"] == pytest.approx(500, rel=0.032)
    assert (parallax["calls"], parallax["errors_by_class"], parallax["error_rate"]) == (10, {"capacity": 1}, 0.1)
    assert (parallax["overflow"], parallax["availability"]) == (1, pytest.approx(9 / 11))
    assert (told["baseline"], told["comparisons"][0]["arm"]) == ("openai", "parallax")
    assert told["comparisons"][0]["saving_per_call"] == pytest.approx(0.9)
    assert sum(slot["arms"]["openai"]["calls"] for slot in told["timeline"]) == 42
    assert (told["rollout"]["state"], told["rollout"]["canary"], told["mirror"]) == ("DRAFT", "parallax", None)
    (chat, alone) = (await room.get("/routes"))["items"]
    assert chat["arms"] == told["arms"]
    assert (alone["arms"][0]["target"], alone["arms"][0]["calls"]) == ("claude", 0)


async def test_a_route_with_one_arm_compares_nothing(room: Room) -> None:
    told = await room.get("/routes/alone")
    assert (told["baseline"], told["comparisons"], told["timeline"], told["rollout"]) == (None, [], [], None)


async def test_figures_begin_with_the_first_call_and_a_window_begins_later(room: Room) -> None:
    began = room.app.traffic.since
    room.met(Try("openai"), ago=5400)
    room.met(Try("openai"), ago=60)
    told = await room.get("/routes/chat")
    assert began < _epoch(told["since"]) <= began + 1800
    assert told["arms"][0]["calls"] == 2
    short = await room.get("/routes/chat?window=30m")
    assert _epoch(short["until"]) - _epoch(short["since"]) == pytest.approx(1800, abs=1)
    assert short["arms"][0]["calls"] == 1
    assert (await room.get("/routes?window=30m"))["items"][0]["arms"][0]["calls"] == 1
    assert (await room.get("/routes/chat?window=14d"))["since"] == told["since"]


async def test_criteria_can_be_chosen(room: Room) -> None:
    room.met(Try("openai", took=1.0, cost=100, usage=USAGE), times=2000)
    room.met(Try("parallax", took=1.2, cost=90, usage=USAGE), times=2000)
    asked = "/routes/chat?added_p95_ms=500&saving=0.05&availability=0.9"
    usual, chosen = await room.get("/routes/chat"), await room.get(asked)
    assert [each["answer"] for each in usual["comparisons"][0]["findings"]] == ["no_go", "no_go", "go"]
    assert [each["limit"] for each in chosen["comparisons"][0]["findings"]] == [500, 0.05, 0.9]
    assert chosen["comparisons"][0]["answer"] == "go"


@pytest.mark.parametrize(
    "query",
    [
        *("window=soon", "window=0", "window=-1h", "since=1h"),
        *("saving=1.5", "saving=nan", "saving=", "saving=0.2&saving=0.3"),
        *("availability=1e-3", "added_p95_ms=99999999", "added_p95_ms=-1"),
    ],
)
async def test_what_makes_no_sense_is_refused(room: Room, query: str) -> None:
    answer = await room.client.get(f"/routes/chat?{query}", headers=TOKEN)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


async def test_a_route_that_is_none_is_not_found(room: Room) -> None:
    assert (await room.client.get("/routes/none", headers=TOKEN)).status_code == 404


async def test_a_mirror_is_told_once_it_had_a_call(room: Room) -> None:
    app = room.app
    settings = app.settings.routes[0].mirror
    assert settings is not None
    compared = app.mirrors._about("chat", settings)
    compared.pairs = {(True, True): 3, (False, True): 1}
    compared.dropped = 2
    for _ in range(3):
        compared.own.observe(compared.since, 2.0, cost=100, output_tokens=10)
        compared.mirrored.observe(compared.since, 1.0, cost=50, output_tokens=30)
    told = (await room.get("/routes/chat"))["mirror"]
    assert (told["target"], told["share"], told["dropped"], told["unfit"]) == ("claude", 0.1, 2, 0)
    assert (told["both_good"], told["own_good"], told["mirror_good"], told["neither_good"]) == (3, 0, 1, 0)
    assert (told["own"]["output_tokens"], told["mirror"]["output_tokens"]) == (30, 90)
    assert told["added_ms"]["p50"] == pytest.approx(-1000, rel=0.07)
    assert told["saving_per_call"] == 0.5


def test_the_baseline_is_the_first_arm_that_is_no_canary_whatever_it_weighs() -> None:
    weighed = routes(
        arms=[{"target": "openai", "weight": 20}, {"target": "claude", "weight": 30}, {"target": "parallax"}]
    )
    arms = weighed.table.routes[0].arms
    assert baseline(arms, "parallax") == baseline(arms, "claude") == baseline(arms, None) == "openai"
    assert baseline(arms, "openai") == "claude"
    assert baseline(arms[:1], None) is None
    assert baseline(arms[2:], "parallax") is None


def _pool(*nodes: Node, most: int | None = None) -> Pool:
    pool = Pool("parallax")
    pool.nodes, pool.most = nodes, most
    return pool


def _node(state: State = State.USED, *, rests_until: float = 0.0, unwell: bool = False) -> Node:
    return Node("parallax", "http://127.0.0.1:9", state, rests_until=rests_until, unwell=unwell)


@pytest.mark.parametrize(
    ("pool", "word"),
    [
        (_pool(_node(), _node()), "ok"),
        (_pool(_node(), most=0), "full"),
        (_pool(_node(unwell=True)), "unwell"),
        (_pool(_node(unwell=True), _node(), _node()), "1 of 3 nodes unwell"),
        (_pool(_node(State.EJECTED), _node()), "1 of 2 nodes out of use"),
        (_pool(_node(State.EJECTED), _node(rests_until=9.0), _node()), "2 of 3 nodes out of use"),
        (_pool(_node(rests_until=9.0), _node(rests_until=9.0)), "resting"),
        (_pool(_node(State.EJECTED), _node(State.EJECTED)), "ejected"),
        (_pool(_node(State.EJECTED), _node(State.TRYING)), "trying"),
    ],
)
def test_health_says_ok_or_what_keeps_a_target_from_taking_calls(pool: Pool, word: str) -> None:
    assert health(pool, 5.0) == word


def test_the_nodes_that_get_no_calls_are_named_with_why_and_until_when() -> None:
    ejected, trying, resting = _node(State.EJECTED), _node(State.TRYING), _node(rests_until=9.0)
    ejected.due, ejected.why, trying.why = 35.0, "5 calls in a row failed", "a probe has found it unwell"
    out = nodes_out(_pool(ejected, trying, _node(), resting), 5.0, 1000)
    assert [(each.state, each.why, each.until) for each in out] == [
        ("ejected", "5 calls in a row failed", utc(1030)),
        ("trying", "a probe has found it unwell", None),
        ("resting", "it asked to be left alone", utc(1004)),
    ]


def test_a_target_that_rested_is_well_again() -> None:
    fleet = Fleet()
    fleet.under([TargetSettings(name="t", kind="openai", url="http://127.0.0.1:9")], [])
    pool = fleet.pools["t"]
    pool.nodes[0].rests_until = 7.0
    assert [health(pool, now) for now in (6.9, 7.0)] == ["resting", "ok"]


def _epoch(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
