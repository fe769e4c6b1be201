"""`adapters.body` inside of a gateway: bodies that are legal by their length do not end the worker that reads them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import AUTHORIZED
from tests.support.process import Gateway, serving_beside
from tests.support.target import target


def configured(folder: Path, url: str) -> dict[str, Any]:
    (folder / "p.rego").write_text('package weighbridge\n\ndecision := {"decision": "ALLOW"}\n')
    return {
        "policy": {"paths": [str(folder / "p.rego")]},
        "agents": [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY}],
        "targets": [{"name": "primary", "kind": "openai", "url": url}],
        "routes": [{"name": "chat", "models": ["gpt-*"], "arms": [{"target": "primary"}]}],
    }


def worker_of(gateway: Gateway) -> int:
    (worker,) = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    return int(worker)


async def status_of(gateway: Gateway, body: bytes) -> int:
    """Of one call; 0 where the connection ends without an answer."""
    async with connected(int(gateway.url.rpartition(":")[2])) as client:
        await client.say(post("/v1/chat/completions", body, AUTHORIZED))
        try:
            return (await client.answer())[0]
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0


@pytest.mark.timeout(60)
async def test_no_body_of_legal_size_ends_the_worker(tmp_path: Path) -> None:
    brackets = b",".join([b"[" * 100 + b"]" * 100] * 150_000)
    keys = b"{" + b",".join(b'"%d":1' % number for number in range(2_600_000)) + b"}"
    heaviest = b"{" + b",".join(b'"%d%s":1' % (number, b"\\n" * 190) for number in range(79_000)) + b"}"
    async with target() as upstream, serving_beside(configured(tmp_path, upstream.url), tmp_path) as gateway:
        worker = worker_of(gateway)
        answered = [
            await status_of(gateway, b'{"model":"gpt-4o","messages":[' + value + b"]}")
            for value in (brackets, keys, heaviest)
        ]
        assert answered == [400, 400, 200]
        assert worker_of(gateway) == worker
