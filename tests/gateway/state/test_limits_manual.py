"""What docs/limits.md shows is true: its configuration loads, and its agent gets what it says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from adapters import registry
from adapters.base import Headers
from gateway.allowances import limit_headers
from gateway.state.limits import MOST_SESSIONS
from policies.limits import LimitPlan
from tests.gateway.state.limits_suite import MINUTE, Node
from tests.gateway.state.test_embedded_limits import HeldStage
from tests.support.exchanges import settings

_TEXT = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()
_HALF_PAST_FOUR = 1_795_235_400 * 10**9


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _TEXT, re.DOTALL | re.MULTILINE)


def the_agent() -> Node:
    (text,) = blocks("yaml")
    plan = LimitPlan(settings(**yaml.safe_load(text)).limits)
    return Node(HeldStage(), plan.of("acme", None, "support-bot"))


def shown(headers: Headers) -> str:
    return "".join(f"{name.decode()}: {value.decode()}\n" for name, value in headers)


async def test_its_agent_reads_what_it_shows() -> None:
    held = await the_agent().enter(1200)
    told = [
        shown(limit_headers(each, held.standings, _HALF_PAST_FOUR)) for each in (registry.OPENAI, registry.ANTHROPIC)
    ]
    assert blocks("http") == told


async def test_its_agent_may_make_so_many_calls_and_then_one_every_so_often() -> None:
    some = the_agent()
    for number in range(600):
        await some.leave(await some.enter(session=f"={number}"))
    assert (await some.refused()).retry_after == 0.1
    let_in = 600
    for _ in range(600):
        await some.stage.advance(MINUTE / 600)
        await some.leave(await some.enter(session=f"={let_in}"))
        let_in += 1
        await some.refused()
        if let_in == 610:
            assert "610 in any second" in _TEXT
    assert f"{let_in} in any minute" in _TEXT


def test_it_says_how_many_sessions_are_remembered() -> None:
    assert f"the {MOST_SESSIONS:,} used last" in _TEXT
