"""Plain HTTP tools over real sockets: what reaches them, what comes back, and what never does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.assembly import assemble
from gateway.tools.http import path_pattern
from policies.decision import Effect
from policies.errors import Undecided
from policies.obligations import read as obligations
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.held_calls import KEY, holding, written
from tests.support.http_tools import Came, HttpTool, http_tool, says
from tests.support.misbehaving import Wire

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Stage:
    """A gateway, a tool behind it as `crm`, and an agent."""

    def __init__(self, gate: Gate, tool: HttpTool, agent: httpx2.AsyncClient) -> None:
        self.gate, self.tool, self.agent = gate, tool, agent

    async def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return await self.agent.request(method, f"/tools/crm{path}", **options)

    def asked(self) -> list[Any]:
        return [document["call"] for document in self.gate.engine.documents]


@asynccontextmanager
async def stage(answer: Any = None, base: str = "", script: Any = ALLOWED, **settings: Any) -> AsyncIterator[Stage]:
    async with http_tool(says(answer) if isinstance(answer, bytes) else answer) as tool:
        crm = {"name": "crm", "kind": "http", "url": tool.url + base, **settings}
        async with (
            gate(tools=[crm], script=script) as built,
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{built.port}", headers={"authorization": f"Bearer {AGENT_KEY}"}, timeout=20
            ) as agent,
        ):
            yield Stage(built, tool, agent)
            for each in built.pipeline.assembly.toolbox:
                await each.close()


async def test_a_request_reaches_the_tool_as_the_policy_saw_it_and_is_answered() -> None:
    async with stage(base="/api") as it:
        answer = await it.call("POST", "/v2/tickets?dry=1", json={"title": "hi"})
        assert answer.status_code == 200
        assert answer.json() == {"method": "POST", "target": "/api/v2/tickets?dry=1", "body": '{"title":"hi"}'}
        assert answer.headers["x-weighbridge-target"] == "crm"
        assert answer.headers["x-weighbridge-decision"] == "ALLOW"
        assert it.asked() == [
            {
                "kind": "tool",
                "protocol": "http",
                "target": "crm",
                "operation": "POST /v2/tickets",
                "arguments": {"dry": "1", "title": "hi"},
            }
        ]
        record = await it.gate.ledger.outcome()
        assert (record["code"], record["target"], record["operation"]) == ("ok", "crm", "POST /v2/tickets")
        assert record["target_status"] == 200


async def test_a_denied_request_never_reaches_the_tool() -> None:
    async with stage(script=replace(ALLOWED, effect=Effect.DENY, explanation="Not that.")) as it:
        answer = await it.call("DELETE", "/v2/tickets/1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "policy_denied")
        assert answer.json()["error"]["message"] == "Not that."
        assert it.tool.connections == 0


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/api/"),
        ("/", "/api/"),
        ("/a%20b", "/api/a%20b"),
        ("/M%c3%bcller", "/api/M%C3%BCller"),
        ("/a+b", "/api/a+b"),
        ("/%41", "/api/A"),
        ("/a?q=x;y&z", "/api/a?q=x%3By&z"),
    ],
)
async def test_a_path_is_sent_as_it_was_read(path: str, target: str) -> None:
    async with stage(base="/api/") as it:
        await it.call("GET", path)
        assert [each.target for each in it.tool.came] == [target]


@pytest.mark.parametrize(
    "path",
    [
        "/../admin", "/%2e%2e/admin", "/.%2e/admin", "/a/..%2fadmin", "/..%5cadmin", "//evil.example", "/a//b",
        "/a;x=1", "/a%3bx", "/a%00", "/a%0d%0aHost:x", "/a%252e%252e", "/%c0%ae%c0%ae/admin", "/%ff", "/%ef%bc%8f..",
        "/a?x=%", "/a?x=%00", "/a\\..\\b",
    ],
)  # fmt: skip
async def test_a_path_that_leads_out_or_has_two_readings_is_refused_before_anybody_is_asked(path: str) -> None:
    async with stage(base="/api") as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.gate.port)
        writer.write(f"GET /tools/crm{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {AGENT_KEY}\r\n\r\n".encode())
        status = await reader.readuntil(b"\r\n")
        writer.close()
        assert status.startswith(b"HTTP/1.1 400 ")
        assert it.asked() == []
        assert it.tool.connections == 0


async def test_only_headers_that_mean_something_to_a_tool_pass_and_never_a_key() -> None:
    async with stage(key="crms-own-secret", headers=["x-api-version"]) as it:
        sent = {
            "x-api-version": "3",
            "if-match": '"a"',
            "cookie": "session=1",
            "x-forwarded-for": "10.0.0.1",
            "x-http-method-override": "DELETE",
            "x-internal": "1",
            "proxy-authorization": "Basic x",
            "x-weighbridge-session": "s-1",
            "accept-encoding": "gzip",
            "prefer": "wait=5",
        }
        await it.call("GET", "/a", headers=sent)
        (came,) = it.tool.came
        assert came.headers["authorization"] == "Bearer crms-own-secret"
        assert came.headers["x-api-version"] == "3"
        assert came.headers["if-match"] == '"a"'
        assert came.headers["accept-encoding"] == "identity"
        assert came.headers["host"] == it.tool.url.removeprefix("http://")
        assert not {"cookie", "x-forwarded-for", "x-http-method-override", "x-internal", "proxy-authorization",
                    "x-weighbridge-session", "x-api-key", "prefer"} & came.headers.keys()  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_a_credential_is_shown_to_the_tool_alone(chunk: int) -> None:
    async def repeats(wire: Wire, came: Came) -> None:
        said = came.headers["x-key"].encode()
        await wire.send(b"HTTP/1.1 200 OK\r\nx-echo: %s\r\ntransfer-encoding: chunked\r\n\r\n" % said)
        text = b"your key is " + said + b", and " + said[:5] + b" begins it: " + said
        for at in range(0, len(text), chunk):
            await wire.send(b"%x\r\n%s\r\n" % (len(text[at : at + chunk]), text[at : at + chunk]))
        await wire.send(b"0\r\n\r\n")

    async with stage(repeats, credential={"header": "X-Key", "value": "a-long-secret"}) as it:
        answer = await it.call("GET", "/a")
        assert answer.text == "your key is *************, and a-lon begins it: *************"
        assert answer.headers["x-echo"] == "*************"


async def test_a_credential_in_the_query_is_the_gateways_alone() -> None:
    async with stage(credential={"query": "api_key", "value": "a&b c-secret"}) as it:
        answer = await it.call("GET", "/a?x=1")
        assert [each.target for each in it.tool.came] == ["/a?x=1&api_key=a%26b%20c-secret"]
        assert answer.status_code == 200
        refused = await it.call("GET", "/a?API_KEY=mine")
        assert refused.status_code == 400
        assert len(it.tool.came) == 1
        assert all("secret" not in json.dumps(document) for document in it.gate.engine.documents)


ODD_SECRET = "a+b/c==x&q%41"


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_credential_is_masked_as_a_url_and_json_spell_it(escaped: bool) -> None:
    async def repeats(wire: Wire, came: Came) -> None:
        said = json.dumps({"url": came.target, "key": ODD_SECRET}).encode()
        said = said.replace(b"/", rb"\/") if escaped else said
        head = b"HTTP/1.1 200 OK\r\nx-url: %b\r\ncontent-length: %d\r\n\r\n" % (came.target.encode(), len(said))
        await wire.send(head + said)

    async with stage(repeats, credential={"query": "api_key", "value": ODD_SECRET}) as it:
        answer = await it.call("GET", "/x")
        assert (
            answer.json() == {"url": "/x?api_key=" + "*" * len("a%2Bb/c%3D%3Dx%26q%2541"), "key": "*" * 13} or escaped
        )
        assert "b/c" not in unquote(answer.headers["x-url"]) + unquote(answer.text).replace("\\", "")


async def test_a_redirect_does_not_carry_the_credential_that_stood_in_the_query() -> None:
    async def moves(wire: Wire, came: Came) -> None:
        place = came.target.replace("old", "new").encode()
        await wire.send(b"HTTP/1.1 302 Found\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % place)

    async with stage(moves, credential={"query": "api_key", "value": ODD_SECRET}) as it:
        answer = await it.call("GET", "/old?page=2")
        assert answer.headers["location"] == "/tools/crm/new?page=2"


async def test_a_rotated_credential_is_masked_as_it_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("the-key-at-the-start")
    async with stage(credential={"query": "api_key", "value": f"file:{file}"}) as it:
        file.unlink()
        answer = await it.call("GET", "/x")
        assert answer.json()["target"] == "/x?api_key=" + "*" * len("the-key-at-the-start")


@pytest.mark.parametrize(
    ("location", "there"),
    [
        ("/api/v2/b", "/tools/crm/v2/b"),
        ("b?x=1", "/tools/crm/a/b?x=1"),
        ("../c", "/tools/crm/c"),
        ("{url}/api/d%20e", "/tools/crm/d%20e"),
        ("/api", "/tools/crm/"),
    ],
)
async def test_a_redirect_below_the_tool_leads_to_the_gateway_again(location: str, there: str) -> None:
    async def redirects(wire: Wire, came: Came) -> None:
        where = location.format(url=f"http://{came.headers['host']}")
        await wire.send(f"HTTP/1.1 307 Go\r\nlocation: {where}\r\ncontent-length: 0\r\n\r\n".encode())

    async with stage(redirects, base="/api") as it:
        answer = await it.call("GET", "/a/x")
        assert (answer.status_code, answer.headers["location"]) == (307, there)
        assert len(it.tool.came) == 1


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest", "//evil.example/api/a", "/admin", "/apix", "../../admin",
        "/api/../admin", "/api/%2e%2e/admin", "https://{host}/api/a", "http://{host}@evil.example/api",
        "javascript:alert(1)", "/api/a;b",
    ],
)  # fmt: skip
async def test_a_redirect_to_elsewhere_is_no_answer(location: str) -> None:
    async def redirects(wire: Wire, came: Came) -> None:
        where = location.format(host=came.headers["host"])
        await wire.send(f"HTTP/1.1 302 Go\r\nlocation: {where}\r\ncontent-length: 0\r\n\r\n".encode())

    async with stage(redirects, base="/api") as it:
        answer = await it.call("GET", "/a/x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "target_failed")
        assert "location" not in answer.headers
        assert "169.254" not in answer.text
        assert (await it.gate.ledger.outcome())["target_status"] == 302


async def test_the_place_of_something_new_is_told_as_the_gateways_or_not_at_all() -> None:
    for place, there in (("/api/t/7", "/tools/crm/t/7"), ("http://inside.example/t/7", None)):
        answer = f"HTTP/1.1 201 Made\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode()
        async with stage(answer, base="/api") as it:
            made = await it.call("POST", "/t", json={})
            assert (made.status_code, made.headers.get("location")) == (201, there)


@pytest.mark.parametrize(
    ("method", "said", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\netag: x\r\n\r\n", 200, "500"),
        ("GET", b"HTTP/1.1 204 None\r\netag: x\r\n\r\n", 204, None),
        ("GET", b"HTTP/1.1 304 Same\r\netag: x\r\n\r\n", 304, None),
        (
            "GET",
            b"HTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\netag: x\r\ncontent-length: 0\r\n\r\n",
            200,
            "0",
        ),
        ("OPTIONS", b"HTTP/1.1 200 OK\r\nallow: GET\r\netag: x\r\ncontent-length: 0\r\n\r\n", 200, "0"),
    ],
)  # fmt: skip
async def test_answers_without_a_body_pass(method: str, said: bytes, status: int, length: str | None) -> None:
    async with stage(said) as it:
        for _ in range(2):  # on one connection
            answer = await it.call(method, "/a", headers={"if-none-match": "x"})
            assert (answer.status_code, answer.headers["etag"], answer.content) == (status, "x", b"")
            assert answer.headers.get("content-length") == length


async def test_a_tools_own_refusal_passes_as_it_is_without_its_cookies() -> None:
    said = (
        b"HTTP/1.1 422 No\r\ncontent-type: application/problem+json\r\nset-cookie: a=1\r\n"
        b'x-weighbridge-call: forged\r\nserver: crm/1\r\nx-trace: 7\r\ncontent-length: 14\r\n\r\n{"title":"no"}'
    )
    async with stage(said) as it:
        answer = await it.call("POST", "/a", json={})
        assert (answer.status_code, answer.json(), answer.headers["x-trace"]) == (422, {"title": "no"}, "7")
        assert not {"set-cookie", "server"} & answer.headers.keys()
        assert answer.headers.get_list("x-weighbridge-call") != ["forged"]
        record = await it.gate.ledger.outcome()
        assert (record["code"], record["status"], record["target_status"]) == ("ok", 422, 422)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b", "cannot be understood"),
        (b"HTTP/1.1 799 Odd\r\ncontent-length: 0\r\n\r\n", "cannot be understood"),
        (b"SMTP hello\r\n\r\n", "cannot be understood"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf", "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000, "longer"),
        (b"HTTP/1.1 101 Switch\r\nupgrade: websocket\r\n\r\n", "cannot be understood"),
    ],
)
async def test_an_answer_that_is_none_is_a_failure_of_the_tool(said: bytes, words: str) -> None:
    async def ends(wire: Wire, came: Came) -> None:
        await wire.send(said)
        wire.close()

    async with stage(ends, largest_answer=1000) as it:
        answer = await it.call("POST", "/a", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "target_failed")
        assert words in answer.json()["error"]["message"]
        assert len(it.tool.came) == 1


async def test_events_pass_one_by_one() -> None:
    next_one = asyncio.Event()

    async def streams(wire: Wire, came: Came) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await next_one.wait()
        await wire.send(b"data: 2\n\n")
        wire.close()

    async with stage(streams) as it, it.agent.stream("GET", "/tools/crm/events") as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"data: 1\n\n"
        next_one.set()
        assert b"".join([piece async for piece in pieces]) == b"data: 2\n\n"
        assert (await it.gate.ledger.outcome())["code"] == "ok"


async def test_a_stream_that_grows_too_long_is_cut_and_recorded() -> None:
    async def streams(wire: Wire, came: Came) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"data: 1\n\n")
        await wire.send(b"data: 2\n\n" * 200)
        await wire.hang()

    async with stage(streams, largest_answer=1000) as it:
        with pytest.raises(httpx2.RemoteProtocolError):
            await it.call("GET", "/events")
        record = await it.gate.ledger.outcome()
        assert (record["code"], record["status"]) == ("target_failed", 200)
        assert "more than 1000 bytes" in record["detail"]


async def test_an_answer_that_is_not_held_back_whole_passes_whole() -> None:
    text = b"0123456789" * 300_000
    async with stage(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text) as it:
        answer = await it.call("GET", "/large")
        assert answer.content == text


async def test_a_tool_that_takes_too_long_for_a_whole_answer_is_given_up() -> None:
    async def hangs(wire: Wire, came: Came) -> None:
        if came.target == "/begins":
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await wire.hang()

    async with stage(hangs, timeout=0.2) as it:
        for path in ("/silent", "/begins"):
            answer = await it.call("GET", path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "target_timeout")
        assert [each.target for each in it.tool.came] == ["/silent", "/begins"]


@pytest.mark.parametrize(
    ("method", "times"), [("GET", 2), ("HEAD", 2), ("OPTIONS", 2), ("POST", 1), ("PATCH", 1), ("PUT", 1), ("DELETE", 1)]
)
async def test_what_was_sent_and_not_answered_is_sent_again_only_where_that_does_nothing_twice(
    method: str, times: int
) -> None:
    async def breaks(wire: Wire, came: Came) -> None:
        wire.close()

    async with stage(breaks) as it:
        answer = await it.call(method, "/a")
        assert answer.status_code == 502
        assert len(it.tool.came) == times


async def test_what_was_answered_with_nonsense_is_not_asked_again() -> None:
    async with stage(b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 0\r\n\r\n") as it:
        assert (await it.call("GET", "/a")).status_code == 502
        assert len(it.tool.came) == 1


async def test_a_tool_without_retries_gets_each_request_once() -> None:
    async def breaks_after_the_first(wire: Wire, came: Came) -> None:
        if wire.turn == 1:
            await wire.send(OK)
        else:
            wire.close()

    async with stage(breaks_after_the_first, retries=0) as it:
        assert (await it.call("GET", "/a")).status_code == 200
        assert (await it.call("GET", "/b")).status_code == 502
        assert [each.target for each in it.tool.came] == ["/a", "/b"]


async def test_a_tool_that_is_down_cannot_be_reached_and_its_address_is_not_told() -> None:
    async with stage() as it:
        url = it.tool.url
    async with gate(tools=[{"name": "crm", "kind": "http", "url": url}]) as built, httpx2.AsyncClient() as agent:
        answer = await agent.put(
            f"http://127.0.0.1:{built.port}/tools/crm/a", headers={"authorization": f"Bearer {AGENT_KEY}"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "target_failed")
        assert url.removeprefix("http://") not in answer.text


async def test_no_more_calls_are_under_way_than_the_tool_may_have() -> None:
    go_on = asyncio.Event()

    async def waits(wire: Wire, came: Came) -> None:
        await go_on.wait()
        await wire.send(OK)

    async with stage(waits, concurrent=2, timeout=0.3) as it:
        calls = [asyncio.create_task(it.call("GET", f"/{number}")) for number in range(3)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert len(it.tool.came) <= 2
        go_on.set()
        codes = sorted([(await each).status_code for each in calls])
        assert codes[-1] in (503, 504)
        assert len(it.tool.came) == 2


async def test_methods_paths_and_sizes_that_are_not_for_agents_are_refused() -> None:
    settings: dict[str, Any] = {
        "methods": ["GET", "POST"],
        "paths": ["/v2/tickets/*", "/v2/search"],
        "largest_request": 10,
    }
    async with stage(**settings) as it:
        refused = await it.call("DELETE", "/v2/search")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
        for path in ("/v2", "/v2/tickets", "/v2/tickets/", "/v2/tickets/1/2", "/v2/searchx", "/V2/search", ""):
            assert (await it.call("GET", path)).status_code == 404
        assert (await it.call("POST", "/v2/search", json={"long": "enough"})).status_code == 413
        assert it.tool.connections == 0
        assert (await it.call("GET", "/v2/tickets/1")).status_code == 200
        assert (await it.call("GET", "/v2/search")).status_code == 200


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/**", "/", True),
        ("/**", "/a/b/c", True),
        ("/v2/**", "/v2", True),
        ("/v2/**", "/v2/", True),
        ("/v2/**", "/v2/a/b", True),
        ("/v2/**", "/v20", False),
        ("/a/**/z", "/a/z", True),
        ("/a/**/z", "/a/b/c/z", True),
        ("/a/**/z", "/a/b/c", False),
        ("/f/*.json", "/f/x.json", True),
        ("/f/*.json", "/f/x/y.json", False),
        ("/f/*.json", "/f/xjson", False),
        ("/", "/", True),
        ("/", "/a", False),
    ],
)
async def test_patterns_of_paths(pattern: str, path: str, fits: bool) -> None:
    async with stage(paths=[pattern]) as it:
        assert ((await it.call("GET", path)).status_code == 200) == fits


@pytest.mark.parametrize(
    ("pattern", "path"),
    [("/**/x/**/x/**/y", "/x" * 16_000), ("/a*b*c*d*e", "/a" + "bcd" * 10_000), ("/**/a*b*c/**/y", "/abbb" * 6_000)],
)
def test_no_path_takes_long_to_be_found_unfit(pattern: str, path: str) -> None:
    compiled = re.compile(path_pattern(pattern))
    began = time.process_time()
    assert compiled.fullmatch(path) is None
    assert time.process_time() - began < 1


@given(
    st.lists(st.sampled_from(["**", "*", "a", "a*", "*b", "a*b*a", "*a*", ""]), min_size=1, max_size=5),
    st.lists(st.text("ab", max_size=4), min_size=1, max_size=6),
)
def test_a_pattern_fits_what_its_stars_could_stand_for(pattern: list[str], path: list[str]) -> None:
    def fits(wanted: list[str], segments: list[str]) -> bool:
        if not wanted:
            return not segments
        if wanted[0] == "**":
            return any(fits(wanted[1:], segments[count:]) for count in range(len(segments) + 1))
        if not segments or (wanted[0] == "*" and not segments[0]):
            return False
        return fnmatchcase(segments[0], wanted[0]) and fits(wanted[1:], segments[1:])

    matched = re.fullmatch(path_pattern("/" + "/".join(pattern)), "/" + "/".join(path))
    assert (matched is not None) == fits(pattern, path)


async def test_the_policys_obligations_change_what_is_sent() -> None:
    demanded = {"redact": ["/arguments/ssn"], "replace": {"/arguments/base": "develop"}, "headers": {"x-team": "a"}}
    script = replace(ALLOWED, obligations=obligations(demanded))
    async with stage(script=script) as it:
        await it.call("POST", "/a?base=main", json={"ssn": "1-2-3", "n": 1})
        (came,) = it.tool.came
        assert came.target == "/a?base=develop"
        assert json.loads(came.body)["n"] == 1
        assert "1-2-3" not in came.body.decode()
        assert came.headers["x-team"] == "a"


async def test_an_obligation_that_cannot_be_fulfilled_denies() -> None:
    script = replace(ALLOWED, obligations=obligations({"replace": {"/arguments/body": "x"}}))
    async with stage(script=script) as it:
        answer = await it.call("PUT", "/a", content=b"\x89PNG", headers={"content-type": "image/png"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "policy_denied")
        assert it.tool.came == []


DOCUMENT = """
openapi: 3.0.3
info: {title: crm, version: "1"}
paths:
  /tickets/{id}:
    parameters:
      - {name: id, in: path, required: true, schema: {type: integer}}
    get: {operationId: getTicket, responses: {}}
"""


async def test_an_openapi_document_names_the_operations(tmp_path: Path) -> None:
    document = tmp_path / "crm.yaml"
    document.write_text(DOCUMENT)
    async with stage(openapi=document, only_described=True) as it:
        assert (await it.call("GET", "/tickets/42")).status_code == 200
        assert it.asked()[0]["operation"] == "getTicket"
        assert it.asked()[0]["arguments"] == {"id": 42}
        assert (await it.call("GET", "/tickets/x")).status_code == 400
        unknown = await it.call("GET", "/tickets")
        assert unknown.status_code == 404
        assert "Only what its OpenAPI document describes can be called." in unknown.json()["error"]["message"]
        assert "base URL" not in unknown.json()["error"]["message"]
        assert (await it.call("PUT", "/tickets/42", json={})).status_code == 404
        assert len(it.tool.came) == 1


async def test_an_agent_that_leaves_ends_its_call() -> None:
    gone = asyncio.Event()

    async def hangs(wire: Wire, came: Came) -> None:
        await wire.hang()
        gone.set()

    async with stage(hangs) as it:
        call = asyncio.create_task(it.call("GET", "/a"))
        while not it.tool.came:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait_for(gone.wait(), 5)
        assert (await it.gate.ledger.outcome())["code"] == "client_gone"


def _judged(**result: Any) -> Any:
    """Allows calls, and decides on their results as told."""

    def script(document: Any) -> Any:
        return replace(ALLOWED, **result) if document["call"].get("phase") == "result" else ALLOWED

    return script


JSON_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"


async def test_the_policy_sees_what_a_tool_has_answered_where_results_are_checked() -> None:
    said = b'{"name": "Ann", "ssn": "1-2"}'
    redact = _judged(obligations=obligations({"redact": ["/result/body/ssn"]}))
    async with stage(JSON_ANSWER % (len(said), said), script=redact, results="checked") as it:
        answer = await it.call("GET", "/people/1")
        assert answer.content == b'{"name": "Ann", "ssn": "***"}'
        assert it.asked()[-1]["result"] == {
            "status": 200,
            "content_type": "application/json",
            "body": {"name": "Ann", "ssn": "1-2"},
        }


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (JSON_ANSWER % (2, b"{}"), {"effect": Effect.DENY, "explanation": "Not for agents."}),
        (JSON_ANSWER % (2, b"{}"), {"effect": Effect.NEEDS_APPROVAL}),
        (JSON_ANSWER % (13, b'{"a":1,"a":2}'), {}),
        (JSON_ANSWER % (2, b"{}"), {"obligations": obligations({"redact": ["/arguments/a"]})}),
        (OK, {"obligations": obligations({"redact": ["/result/body/a"]})}),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b"x" * 2_000_000, {}),
    ],
)
async def test_a_result_that_the_policy_does_not_let_pass_is_withheld(answer: bytes, said: dict[str, Any]) -> None:
    async with stage(answer, script=_judged(**said), results="checked") as it:
        withheld = await it.call("POST", "/people", json={})
        assert (withheld.status_code, withheld.json()["error"]["code"]) == (403, "policy_denied")
        assert "The call was made, and its result is withheld." in withheld.json()["error"]["message"]
        assert len(it.tool.came) == 1
        assert (await it.gate.ledger.outcome())["result"] == "withheld"


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        (b'{"card":"1234"}', True),
        (b'{"data":{"card":"1234"}}', False),
        (b"[]", False),
        (b"", False),
    ],
)
async def test_a_result_in_which_a_redaction_leads_to_nothing_is_withheld_and_the_record_names_it(
    said: bytes, *, passes: bool
) -> None:
    redact = _judged(obligations=obligations({"redact": ["/result/body/card"]}))
    async with stage(JSON_ANSWER % (len(said), said), script=redact, results="checked") as it:
        answer = await it.call("GET", "/people/1")
        assert b"1234" not in answer.content
        assert answer.status_code == (200 if passes else 403)
        record = await it.gate.ledger.outcome()
        assert record["result"] == ("redacted" if passes else "withheld")
        assert ("/result/body/card" in record.get("detail", "")) is not passes


async def test_every_element_of_an_empty_list_is_not_missed() -> None:
    said = b'{"rows": [ ]}'
    redact = _judged(obligations=obligations({"redact": ["/result/body/rows/*/card"]}))
    async with stage(JSON_ANSWER % (len(said), said), script=redact, results="checked") as it:
        assert (await it.call("GET", "/people")).content == said


async def test_an_error_of_the_tool_is_counted_as_one() -> None:
    async with stage(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n") as it:
        assert (await it.call("GET", "/a")).status_code == 500
        assert (await it.gate.ledger.outcome())["tool_error"] is True


async def test_a_result_about_which_the_policy_cannot_be_asked_is_withheld() -> None:
    def script(document: Any) -> Any:
        if document["call"].get("phase") == "result":
            raise Undecided("no decision")
        return ALLOWED

    async with stage(JSON_ANSWER % (2, b"{}"), script=script, results="checked") as it:
        withheld = await it.call("GET", "/people/1")
        assert (withheld.status_code, withheld.json()["error"]["code"]) == (403, "policy_unavailable")
        assert (await it.gate.ledger.outcome())["code"] == "policy_unavailable"


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_what_people_have_approved_is_sent_once_though_nobody_answers(method: str, tmp_path: Path) -> None:
    async def breaks(wire: Wire, came: Came) -> None:
        wire.close()

    async with http_tool(breaks) as tool:
        crm = {"name": "crm", "kind": "http", "url": tool.url, "retries": 5}
        async with holding(written(tmp_path, "http://127.0.0.1:9", tools=[crm])) as it:
            ask = {"authorization": f"Bearer {KEY}", "prefer": "respond-async"}
            where = "/tools/crm/a?needs=finance&needs=security"
            held = await it.agent.request(method, where, headers=ask)
            assert held.status_code == 202, held.text
            approval = held.headers["location"].removeprefix("/approvals/")
            for person in ("finn", "sean"):
                await it.post(f"/approvals/{approval}/approve", person)
            ran = await it.agent.request(method, where, headers=ask)
            assert (ran.status_code, ran.json()["error"]["code"]) == (502, "target_failed")
            assert "Do not repeat it" in ran.json()["error"]["message"]
            assert len(tool.came) == 1
            assert (await it.get(f"/approvals/{approval}"))["query"] == "needs=finance&needs=security"


async def test_a_tool_keeps_its_connections_over_an_edit_that_is_none_of_its_business(tmp_path: Path) -> None:
    document = tmp_path / "crm.yaml"
    document.write_text(DOCUMENT)
    async with stage(openapi=document) as it:
        before = it.gate.pipeline.assembly
        same = assemble(before.settings, before)
        assert same.toolbox.find("http", "crm") is before.toolbox.find("http", "crm")
        document.write_text(DOCUMENT + "# another text\n")
        other = assemble(before.settings, before)
        assert other.toolbox.find("http", "crm") is not before.toolbox.find("http", "crm")
        await other.toolbox.close()


_PATHS = (
    "a",
    "B",
    "/",
    "//",
    "..",
    ".",
    "%2e",
    "%2f",
    "%2F",
    "%5c",
    ";",
    "%00",
    "%",
    "%25",
    "%c3%bc",
    "%ff",
    "+",
    "\\",
    "@",
    ":",
)
_QUERIES = ("a", "b", "=", "&", "+", "%20", "%00", "%", ";", "[]", "%c3%bc", "A", "1", "=&", "a=1", "#", '"', "\u00e9")
_BODIES = ("{", "}", '"a"', ":", "1", ",", "[", "]", "a=1", "&", "true", '"\\u0000"', "1e2", " ", "\ufeff", "\x00")
_TYPES = ("application/json", "application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-16", "")


async def test_whatever_comes_is_refused_or_reaches_the_tool_as_the_policy_saw_it() -> None:
    chance = random.Random(7)

    def some(pieces: tuple[str, ...]) -> str:
        return "".join(chance.choices(pieces, k=chance.randrange(6)))

    async with stage(base="/api") as it:
        reached = 0
        for _ in range(400):
            body = some(_BODIES).encode() if chance.random() < 0.6 else b""
            target = f"/tools/crm/{some(_PATHS)}" + (f"?{some(_QUERIES)}" if chance.random() < 0.6 else "")
            lines = [f"{chance.choice(('GET', 'POST', 'PUT'))} {target} HTTP/1.1", "host: gateway", "connection: close"]
            lines += [f"authorization: Bearer {AGENT_KEY}", f"content-length: {len(body)}"]
            lines += [f"content-type: {kind}" for kind in chance.choices(_TYPES, k=1) if kind]
            it.gate.engine.documents.clear()
            it.tool.came.clear()
            status = await _said(it.gate.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            assert status in (200, 400, 404), target
            assert len(it.tool.came) == len(it.asked()) == (status == 200)
            if status == 200:
                reached += 1
                (came,), (asked,) = it.tool.came, it.asked()
                path, _, query = came.target.removeprefix("/api").partition("?")
                assert asked["operation"] == f"{came.method} {unquote(path)}"
                assert not {"..", "."} & set(unquote(unquote(path)).split("/"))
                assert asked["arguments"] == _understood(query, came)
        assert reached > 50, "what is made up is not all nonsense"


async def _said(port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


def _understood(query: str, came: Came) -> dict[str, Any]:
    """What an ordinary server makes of a request."""
    said: dict[str, Any] = {}
    kind = came.headers.get("content-type", "")
    if came.body and kind == "application/json":
        value = json.loads(came.body)
        said = value if isinstance(value, dict) else {"body": value}
    elif came.body and kind == "text/plain":
        digest = hashlib.sha256(came.body).hexdigest()
        said = {"body": {"sha256": digest, "bytes": len(came.body), "content_type": kind}}
    elif came.body:
        query = "&".join(each for each in (query, came.body.decode()) if each)
    for name, values in parse_qs(query, keep_blank_values=True).items():
        said[name] = values if len(values) > 1 else values[0]
    return said
