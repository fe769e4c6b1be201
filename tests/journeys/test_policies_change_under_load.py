"""Policy and data replaced again and again, under calls without a pause: none is lost, and none sees half of each."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from tests.support.process import Gateway, serving_beside
from tests.support.standins import OPENAI_KEY, Standins, running_standins

AGENT_KEY = "restless-agents-own-key"
PERSON = {"authorization": "Bearer restless-persons-token"}
SWAPS = 8
CONNECTIONS = 8
POLICY = """package weighbridge

import rego.v1

default decision := {{"decision": "DENY", "explanation": "nobody"}}

explanation := concat(" ", ["{word}", data.word])

decision := {{"decision": "DENY", "explanation": explanation}} if input.call.target == "told"

decision := {{"decision": "ALLOW", "explanation": explanation}} if input.call.target == "gpt-4o-mini"
"""


@pytest.fixture(scope="module")
def standins() -> Iterator[Standins]:
    with running_standins() as running:
        yield running


def generations(folder: Path) -> None:
    """Two policies, each in two files that belong together, and links to one: so a mounted ConfigMap looks."""
    for word in ("one", "two"):
        generation = folder / f"..{word}"
        generation.mkdir(parents=True)
        (generation / "main.rego").write_text(POLICY.format(word=word))
        (generation / "word.yaml").write_text(f"word: {word}\n")
    for name in ("main.rego", "word.yaml"):
        (folder / name).symlink_to(f"..data/{name}")
    swap(folder, "one")


def swap(folder: Path, word: str) -> None:
    (folder / "..next").symlink_to(f"..{word}")
    (folder / "..next").replace(folder / "..data")


@dataclass
class Seen:
    """What the agents saw: how often each status and explanation, and what each refused call was told."""

    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)


async def agent(url: httpx2.URL, seen: Seen, enough: asyncio.Event) -> None:
    """Calls without a pause on one connection, and notes every answer; a connection that ends early is an error."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    for model in itertools.cycle(("told", "told", "told", "gpt-4o-mini")):
        if enough.is_set():
            break
        body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\nauthorization: Bearer {AGENT_KEY}\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        answer = orjson.loads(await reader.readexactly(int(headers["content-length"])))
        status = int(first.split()[1])
        if status == 403:
            seen.told[headers["x-weighbridge-call"]] = answer["error"]["message"]
        seen.answers[status, model] += 1
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def calls(gateway: Gateway, seen: Seen) -> AsyncIterator[None]:
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as agents:
        for _ in range(CONNECTIONS):
            agents.create_task(agent(httpx2.URL(gateway.url), seen, enough))
        yield
        enough.set()


async def in_use(gateway: Gateway, not_this: str | None) -> str:
    """The revision that decides, once it is another one."""
    async with asyncio.timeout(20), httpx2.AsyncClient(base_url=gateway.admin, headers=PERSON) as admin:
        while True:
            revision: str = (await admin.get("/policy")).json()["revision"]
            if revision != not_this:
                return revision
            await asyncio.sleep(0.01)  # the admin API tells when it is asked


def recorded(ledger: Path, *kinds: str) -> dict[str, dict[str, Any]]:
    """The records of these kinds by call, of which each has one."""
    records = [orjson.loads(line) for file in sorted(ledger.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
    found = [record for record in records if record["record"] in kinds]
    assert len({record["call"] for record in found}) == len(found)
    return {record["call"]: record for record in found}


async def test_no_call_is_lost_and_none_sees_half_of_two_policies(standins: Standins, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    generations(rules)
    config = {
        "admin": {"people": [{"name": "dana", "token": "restless-persons-token", "roles": ["admin"]}]},
        "ledger": {"path": str(tmp_path / "ledger")},
        "policy": {"paths": ["rules"]},
        "agents": [{"name": "restless", "tenant": "acme", "key": AGENT_KEY}],
        "targets": [{"name": "openai", "kind": "openai", "url": standins.openai_url + "/v1", "key": OPENAI_KEY}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "openai"}]}],
    }
    seen = Seen()
    async with serving_beside(config, tmp_path) as gateway:
        revision = await in_use(gateway, None)
        revisions = {"one one": revision}
        async with calls(gateway, seen):
            for turn in range(SWAPS):
                word = "one" if turn % 2 else "two"
                swap(rules, word)
                revision = await in_use(gateway, revision)
                assert revisions.setdefault(f"{word} {word}", revision) == revision
    assert set(seen.answers) == {(403, "told"), (200, "gpt-4o-mini")}
    assert set(seen.told.values()) == set(revisions)
    outcomes = recorded(tmp_path / "ledger", "outcome")
    decisions = recorded(tmp_path / "ledger", "decision", "intent")
    assert len(outcomes) == len(decisions) == seen.answers.total() > SWAPS * CONNECTIONS
    for call, decision in decisions.items():
        explanation = decision["result"]["explanation"]
        assert seen.told.get(call, explanation) == explanation
        assert decision["bundles"]["weighbridge"]["revision"] == revisions[explanation] == outcomes[call]["revision"]
