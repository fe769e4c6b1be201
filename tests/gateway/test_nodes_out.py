"""A node that gets no calls is told of where operators look: in the log, in the record, in what a route shows."""

from __future__ import annotations

import asyncio
import logging
import re

import orjson
import pytest

from routing.outcomes import OUTCOMES
from tests.support.door import connected, post
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import Misbehaving, Wire, says

ANSWER = orjson.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {}})
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)


async def called(found: Gate) -> None:
    body = orjson.dumps({"model": "gpt-4o-mini", "messages": []})
    async with connected(found.port) as client:
        await client.say(post("/v1/chat/completions", body, AUTHORIZED))
        status, _, _ = await asyncio.wait_for(client.answer(), 5)
        assert status == 200


async def test_an_ejection_and_a_return_are_a_line_of_the_log_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weighbridge.routing")
    async with Misbehaving() as upstream:
        upstream.on("/down/chat/completions", says(b"", Wire.close))
        upstream.on("/well/chat/completions", says(JSON + ANSWER))
        well = f"http://127.0.0.1:{upstream.port}/well"
        down = f"http://127.0.0.1:{upstream.port}/down"
        async with gate(target={"url": None, "urls": [well, down], "health": {"failures": 2}}) as found:
            fleet = found.pipeline.attempts.fleet
            for _call in range(6):
                await called(found)
            (line,) = [record for record in caplog.records if record.name == "weighbridge.routing"]
            ejected = rf"target primary: {re.escape(down)} is ejected for 30 s, until \S+T\S+Z: "
            assert re.fullmatch(ejected + "2 calls in a row failed, the last one as `reset`", line.getMessage())
            assert line.levelno == logging.WARNING
            (node,) = [each for each in fleet.pools["primary"].nodes if each.url == down]
            arm = found.pipeline.assembly.table.match("gpt-4o-mini").arms[0]
            pick = fleet.pick([arm], node.due)
            assert pick is not None
            fleet.ended(pick, OUTCOMES["ok"], node.due + 1)
            line = caplog.records[-1]
            assert line.getMessage() == f"target primary: {down} takes calls again, after 31 s"
            assert line.levelno == logging.INFO
