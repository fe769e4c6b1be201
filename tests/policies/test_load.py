"""From paths to an engine that decides, or to problems and nothing else."""

import asyncio
from pathlib import Path

import pytest

from config.settings import PolicySettings
from policies.decision import Effect
from policies.errors import PolicyError
from policies.load import load
from tests.policies.support import ENVELOPES, NOW, ROOT, SHIPPED, llm, rego


def policy(*paths: Path) -> PolicySettings:
    return PolicySettings(paths=paths, prove_timeout=20)


async def test_the_shipped_policy_and_the_example_envelopes_load_and_decide() -> None:
    engine = await load(policy(SHIPPED, ENVELOPES))
    assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW
    assert (await engine.evaluate(llm(agent="nobody"), NOW)).effect is Effect.DENY
    again = await load(policy(ENVELOPES, SHIPPED))
    assert again.revision == engine.revision
    assert again is not engine


async def test_problems_of_files_and_of_policies_end_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        await load(policy(tmp_path / "nowhere"))
    (tmp_path / "p.rego").write_text(rego("decision := http.send({})"))
    with pytest.raises(PolicyError, match=r"p\.rego:5: `http\.send` may not be called"):
        await load(policy(tmp_path))


@pytest.mark.parametrize(
    ("envelopes", "message"),
    [
        ("envelopes: {a: {daily_cost_cap: 5}}", "envelopes.a: daily_cost_cap: there is no such field"),
        ("envelopes: {a: {daily_cost_cap_usd: '5'}}", "envelopes.a: daily_cost_cap_usd: is not a number"),
        ("envelopes: {a: {max_output_tokens: -1}}", "envelopes.a: max_output_tokens: is not a number, 0 or more"),
        ("envelopes: {a: {models: [gpt]}}", "envelopes.a: models: is not an object"),
        ("envelopes: {a: {models: {gpt: true}}}", "envelopes.a.models.gpt: is not an object"),
        ("envelopes: {a: {models: {gpt: {risk: hig}}}}", "risk: is not one of low, medium, high, critical"),
        ("envelopes: {a: {model_patterns: gpt-*}}", "model_patterns: is not a list of texts"),
        ("envelopes: {a: {required_approvals: []}}", "required_approvals: is not a list of texts with at least one"),
        ("envelopes: {a: {allowed_tools: {t: {max: 1}}}}", "envelopes.a.allowed_tools.t: max: there is no such field"),
        (
            "envelopes: {a: {allowed_tools: {t: {operations: {o: {maximum: {}}}}}}}",
            "envelopes.a.allowed_tools.t.operations.o: maximum: there is no such field",
        ),
        (
            "envelopes: {a: {allowed_agents: {t: {operations: {o: {pattern: {x: '('}}}}}}}",
            "pattern: is not an object {parameter: regular expression}",
        ),
        ("envelopes: {a: 5}", "envelopes.a: is not an object"),
        ("envelopes: {a: null}", "envelopes.a: is not an object"),
        ("envelopes: 5", "envelopes is not an object"),
    ],
)
async def test_an_envelope_that_would_limit_nothing_is_refused(tmp_path: Path, envelopes: str, message: str) -> None:
    file = tmp_path / "envelopes.yaml"
    file.write_text(envelopes)
    with pytest.raises(PolicyError) as caught:
        await load(policy(SHIPPED, file))
    assert message in str(caught.value)


async def test_the_loop_keeps_running_while_a_policy_is_loaded() -> None:
    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.005)
            longest = max(longest, loop.time() - before)

    async with asyncio.TaskGroup() as group:
        beating = group.create_task(heartbeat())
        await load(policy(SHIPPED, ENVELOPES))
        beating.cancel()
    assert longest < 1, "the proof runs elsewhere"


def test_nothing_of_the_house_but_this_room_is_needed() -> None:
    for file in (ROOT / "policies").glob("*.py"):
        for room in ("gateway", "routing", "adapters"):
            assert f"from {room}" not in file.read_text()
