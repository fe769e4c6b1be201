"""A whole gateway uploads its decisions: those on calls that were made, and those on calls that were not."""

import asyncio
from pathlib import Path

from gateway.ledger import FILE_NAME
from gateway.reader import records
from tests.support.collector import collecting
from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import AUTHORIZED
from tests.support.process import serving_beside
from tests.support.target import target

POLICY = """package weighbridge

default decision := {"decision": "DENY", "explanation": "Not this one."}

decision := {"decision": "ALLOW", "obligations": {"redact": ["/arguments/ssn"]}} if input.call.target == "gpt-4o"
"""


async def test_a_gateway_uploads_each_decision_and_the_rest_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(POLICY)
    async with target() as upstream, collecting() as collector:
        configured = {
            "policy": {"paths": [str(tmp_path / "p.rego")]},
            "decision_log": {"url": f"http://127.0.0.1:{collector.port}/logs", "max_delay": "0.1s"},
            "agents": [{"name": "support-bot", "key": AGENT_KEY}],
            "targets": [{"name": "primary", "kind": "openai", "url": upstream.url}],
            "routes": [{"name": "chat", "models": ["gpt-*"], "arms": [{"target": "primary"}]}],
        }
        async with serving_beside(configured, tmp_path) as gateway:
            async with connected(int(gateway.url.rpartition(":")[2])) as client:
                body = b'{"model":"gpt-4o","messages":[],"ssn":"078-05-1120"}'
                await client.say(post("/v1/chat/completions", body, AUTHORIZED))
                assert (await client.answer())[0] == 200
                async with asyncio.timeout(10):
                    while len(collector.events) < 2:
                        await asyncio.sleep(0.02)  # the collector is told from another process
                await client.say(post("/v1/chat/completions", body.replace(b"gpt-4o", b"gpt-3"), AUTHORIZED))
                assert (await client.answer())[0] == 403
        recorded = [each for each in records(tmp_path / "var" / "ledger" / FILE_NAME) if "decision_id" in each]
    assert [each["decision_id"] for each in collector.events] == [each["decision_id"] for each in recorded]
    assert [each["result"]["decision"] for each in collector.events] == ["ALLOW", "ALLOW", "DENY"]
    assert b"078-05-1120" not in upstream.received[0].body
    assert "078-05-1120" not in repr(collector.events[:2])
