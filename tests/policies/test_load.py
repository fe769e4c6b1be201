"""From paths to an engine that decides, or to problems and nothing else."""

import ast
import asyncio
import gc
import subprocess
import sys
import time
from pathlib import Path

import orjson
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
    with pytest.raises(PolicyError, match="does not exist"):
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


async def test_a_fault_that_many_envelopes_share_is_told_of_each(tmp_path: Path) -> None:
    grant = {"operations": {"refund": {"maximum": {"amount": 5}}}}
    envelopes = {name: {"allowed_tools": {"pay": grant}, "models": {"m": {"risky": 1}}} for name in ("ann", "bob")}
    (tmp_path / "envelopes.json").write_bytes(orjson.dumps({"envelopes": envelopes}))
    with pytest.raises(PolicyError) as caught:
        await load(policy(SHIPPED, tmp_path))
    for name in ("ann", "bob"):
        assert f"envelopes.{name}.allowed_tools.pay.operations.refund: maximum: there is no such" in str(caught.value)
        assert f"envelopes.{name}.models.m: risky: there is no such" in str(caught.value)


class Turns:
    """The longest that anything held the event loop, in seconds of its thread's processor time."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.0005)
            self.longest = max(self.longest, time.thread_time() - began)


async def steps(folder: Path) -> list[float]:
    """The longest step of each of some reloads of ten thousand envelopes."""
    operation = {"required": ["title"], "one_of": {"base": ["main", "develop"]}, "max_length": {"title": 120}}
    tools = {name: {"operations": {"create": operation, "list": {}}} for name in ("github", "crm", "wiki", "shop")}
    envelopes = {f"agent-{number}": {"models": {"m": {}}, "allowed_tools": tools} for number in range(10_000)}
    (folder / "envelopes.json").write_bytes(orjson.dumps({"envelopes": envelopes}))
    (folder / "p.rego").write_text(
        rego('decision := {"decision": "ALLOW"} if data.envelopes[input.agent.name].models[input.call.target]')
    )
    serving = await load(policy(folder))
    # As a worker does once it serves: otherwise a collection of garbage is the longest step.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    longest: list[float] = []
    for _ in range(4):
        turns = Turns()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(turns.watch())
            successor = await load(policy(folder))
            await serving.retire()
            watching.cancel()
        serving = successor
        longest.append(turns.longest)
    assert (await serving.evaluate(llm("m", agent="agent-9999"), NOW)).effect is Effect.ALLOW
    await serving.retire()
    return longest


def test_ten_thousand_envelopes_are_loaded_and_given_up_without_holding_up_calls(tmp_path: Path) -> None:
    """The processor is asked, not the clock, and the quietest reload counts: others use this machine too.

    In a process of its own, as in a gateway: to start a child takes longer, the more its parent holds.
    """
    code = "import asyncio, pathlib, sys; from tests.policies.test_load import steps; print(asyncio.run(steps(PATH)))"
    code = code.replace("PATH", "pathlib.Path(sys.argv[1])")
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=55
    )
    assert ended.returncode == 0, ended.stderr
    longest = ast.literal_eval(ended.stdout)
    assert len(longest) == 4
    assert min(longest) < 0.010, longest


def test_nothing_of_the_house_but_this_room_is_needed() -> None:
    for file in (ROOT / "policies").glob("*.py"):
        for room in ("gateway", "routing", "adapters"):
            assert f"from {room}" not in file.read_text()
