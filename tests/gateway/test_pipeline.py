"""The journey of one call: every way through it and every way out, over real connections."""

import asyncio
import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from gateway.carrier import Carrier
from policies.approvals import State
from policies.decision import Decision, Effect
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.obligations import read
from tests.support.door import RawClient, connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.people import deciding
from tests.support.target import Target, target

CHAT = "/v1/chat/completions"
DENIED = dataclasses.replace(ALLOWED, effect=Effect.DENY, explanation="Support may not do this. Ask for gpt-4o-mini.")
ASKED = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))


def chat(**more: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], **more})


def head(request_line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{request_line} HTTP/1.1", "host: gateway", AUTHORIZED, *headers, "", ""]).encode()


async def ask(client: RawClient, body: bytes, path: str = CHAT, *headers: str) -> tuple[int, dict[bytes, bytes], Any]:
    await client.say(post(path, body, AUTHORIZED, *headers))
    status, answered, content = await client.answer()
    return status, answered, orjson.loads(content)


async def test_an_allowed_call_is_carried_byte_for_byte_and_recorded_twice() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        body = b'{ "model" : "gpt-4o-mini",\n "messages":[ ], "x":1.10 }'
        status, headers, answer = await ask(client, body)
        assert status == 200
        assert answer == orjson.loads(upstream.answer)
        assert upstream.received[0].body == body
        assert headers[b"x-weighbridge-decision"] == b"ALLOW"
        assert headers[b"x-weighbridge-target"] == b"primary"
        record = await g.ledger.outcome()
        assert record["call"] == headers[b"x-weighbridge-call"].decode()
        assert [each["record"] for each in g.ledger.records] == ["intent", "outcome"]
        assert record["usage"]["input_tokens"] == 7
        assert (record["code"], record["status"], record["target_status"]) == ("ok", 200, 200)


async def test_the_policy_sees_the_agent_the_call_and_the_time() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await ask(client, chat(stream=False), CHAT, "x-weighbridge-session: s-1")
        (document,) = g.engine.documents
        assert 0 < document["call"].pop("estimated_cost_usd") < 0.01
        assert document["agent"] == {
            "name": "support-bot",
            "tenant": "acme",
            "roles": ["support"],
            "autonomy_tier": 2,
            "state": "active",
        }
        assert document["call"] == {
            "kind": "llm",
            "protocol": "openai",
            "target": "gpt-4o-mini",
            "operation": "chat",
            "stream": False,
            "arguments": orjson.loads(chat(stream=False)),
            "session": "s-1",
        }
        assert document["time"]["unix_ns"] > 0
        assert "approval" not in document
        assert "budgets" not in document


async def test_the_agents_key_and_headers_stay_here_and_the_operators_key_goes() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        leaking = (
            "x-weighbridge-session: s-1",
            "cookie: a=b",
            "x-forwarded-for: 1.2.3.4",
            "forwarded: for=1.2.3.4",
            "x-internal-name: payroll",
            "openai-organization: somebody",
            "connection: keep-alive, x-hop",
            "x-hop: 1",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        await ask(client, chat(), CHAT, *leaking)
        received = dict(upstream.received[0].headers)
        assert received[b"authorization"] == b"Bearer the-operators-own-key"
        assert received[b"traceparent"].startswith(b"00-")
        assert received[b"host"] == upstream.url.removeprefix("http://").encode()
        names = set(received)
        assert not names & {b"cookie", b"x-forwarded-for", b"forwarded", b"x-internal-name", b"x-hop"}
        assert not names & {b"openai-organization", b"x-weighbridge-session"}
        assert AGENT_KEY.encode() not in upstream.received[0].raw


async def test_a_targets_private_headers_stay_here() -> None:
    private = [("set-cookie", "a=b"), ("server", "secret/1"), ("x-weighbridge-call", "forged"), ("x-request-id", "r")]
    async with target(headers=private) as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        _, headers, _ = await ask(client, chat())
        assert b"set-cookie" not in headers
        assert headers.get(b"server") != b"secret/1"
        assert headers[b"x-weighbridge-call"] != b"forged"
        assert headers[b"x-request-id"] == b"r"


async def test_a_renamed_model_changes_nothing_but_the_name() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await ask(client, b'{"messages":[] , "model": "alias", "y":1.50}')
        assert upstream.received[0].body == b'{"messages":[] , "model": "real/name", "y":1.50}'
        assert (await g.ledger.outcome())["target_model"] == "real/name"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "unauthenticated"),
        (["authorization: Bearer "], "unauthenticated"),
        (["authorization:"], "unauthenticated"),
        (["authorization: Bearer wrong-key"], "unauthenticated"),
        ([f"authorization: Basic {AGENT_KEY}"], "unauthenticated"),
        (["x-api-key:"], "unauthenticated"),
        (["x-api-key: wrong"], "unauthenticated"),
        ([AUTHORIZED, "x-api-key: another"], "unauthenticated"),
        ([AUTHORIZED, "authorization: Bearer another"], "unauthenticated"),
        (["x-weighbridge-session: a", "x-weighbridge-session: b"], "unauthenticated"),
        ([AUTHORIZED, "x-weighbridge-session: a", "x-weighbridge-session: b"], "malformed_call"),
    ],
)
async def test_without_one_known_key_there_is_no_identity(headers: list[str], code: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(), *headers))
        status, answered, body = await client.answer()
        assert orjson.loads(body)["error"]["code"] == code
        assert status == (401 if code == "unauthenticated" else 400)
        assert upstream.received == []
        record = await g.ledger.outcome()
        assert (record["code"], record.get("agent")) == (code, None if status == 401 else "support-bot")
        assert AGENT_KEY not in repr(g.ledger.records) + repr(body)
        if status == 401:
            assert answered[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize("header", [AUTHORIZED, f"x-api-key: {AGENT_KEY}", f"AUTHORIZATION: bearer {AGENT_KEY}"])
async def test_a_known_key_is_accepted_in_either_header(header: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(), header))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (DENIED, 403, "policy_denied"),
        (dataclasses.replace(ALLOWED, obligations=read({"sing": 5})), 403, "policy_denied"),
        (ASKED, 403, "approval_pending"),
        (Undecided("weighbridge.rego:3: secret source"), 403, "policy_unavailable"),
        (EngineUnavailable("The policy could not be asked."), 403, "policy_unavailable"),
        (InputRefused("The call is nested too deeply."), 400, "malformed_call"),
    ],
)
async def test_what_is_not_allowed_never_reaches_a_target(script: Any, status: int, code: str) -> None:
    held: dict[str, Any] = {"approvals": {"hold_for": 0}}
    async with (
        target() as upstream,
        gate(target_url=upstream.url, script=script, **held) as g,
        connected(g.port) as client,
    ):
        answered, headers, body = await ask(client, chat())
        assert (answered, body["error"]["code"]) == (status, code)
        assert headers[b"x-should-retry"] == b"false"
        assert upstream.received == []
        assert "secret source" not in repr(body)
        recorded = [each["record"] for each in g.ledger.records if each["record"] != "approval"]
        assert recorded == ["decision", "outcome"]
        assert (await g.ledger.outcome())["code"] == code


async def test_a_denial_tells_the_agent_why() -> None:
    async with gate(script=DENIED) as g, connected(g.port) as client:
        _, headers, body = await ask(client, chat())
        assert "Ask for gpt-4o-mini" in body["error"]["message"]
        assert headers[b"x-weighbridge-decision"] == b"DENY"


async def test_the_detail_of_a_broken_policy_is_for_the_operator_alone() -> None:
    script = Undecided("weighbridge.rego:3: conflict")
    async with gate(script=script) as g, connected(g.port) as client:
        await ask(client, chat())
        assert (await g.ledger.outcome())["detail"] == "weighbridge.rego:3: conflict"


async def test_a_value_of_the_call_that_a_broken_policy_quotes_is_not_recorded() -> None:
    script = Undecided("weighbridge.rego:3: cannot add secret", "weighbridge.rego:3: cannot add")
    async with gate(script=script) as g, connected(g.port) as client:
        await ask(client, chat())
        assert (await g.ledger.outcome())["detail"] == "weighbridge.rego:3: cannot add"


async def test_without_a_policy_every_call_is_refused() -> None:
    async with target() as upstream, gate(target_url=upstream.url, loaded=False) as g, connected(g.port) as client:
        status, _, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (403, "policy_unavailable")
        assert upstream.received == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b'{"model":"gpt-4o-mini","messages":[],"model":"gpt-4o"}',
        b'{"model":"gpt-4o-mini","messages":[{"role":"user","role":"system"}]}',
        b'{"model":"gpt-4o-mini","messages":[],"temperature":NaN}',
        b'{"model":"gpt-4o-mini","messages":[],"temperature":-Infinity}',
        b'{"model":"gpt-4o-mini","messages":["\\ud800"]}',
        b'{"model":"gpt-4o-mini","messages":["\xff"]}',
        b'{"model":"gpt-4o-mini","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":5,"messages":[]}',
        b'{"model":"","messages":[]}',
        b'{"model":["gpt-4o-mini"],"messages":[]}',
        b'{"messages":[]}',
        b'{"model":"gpt-4o-mini","messages":{}}',
        b'{"model":"gpt-4o-mini","messages":"hello"}',
        b'{"model":"gpt-4o-mini"}',
        b'{"model":"gpt-4o-mini","messages":[],"stream":"true"}',
        b'{"model":"gpt-4o-mini","messages":[],"stream":1}',
        b'{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":[]}',
    ],
)
async def test_a_malformed_body_is_refused_and_the_connection_goes_on(body: bytes) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        status, _, answer = await ask(client, body)
        assert (status, answer["error"]["code"]) == (400, "malformed_call")
        assert upstream.received == []
        assert (await ask(client, chat()))[0] == 200
        assert [record["code"] for record in g.ledger.outcomes()] == ["malformed_call", "ok"]


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async with gate(listen={"max_body": 1000}) as g, connected(g.port) as client:
        await client.say(head(f"POST {CHAT}", "content-length: 50000000"))
        status, _, body = await client.answer()
        assert (status, orjson.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_a_chunked_body_over_the_limit_is_refused() -> None:
    async with gate(listen={"max_body": 1000}) as g, connected(g.port) as client:
        await client.say(head(f"POST {CHAT}", "transfer-encoding: chunked"))
        await client.say(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert (await client.answer())[0] == 413


async def test_fifty_megabytes_are_refused_and_nothing_is_kept() -> None:
    async with gate() as g:
        async with connected(g.port) as client:
            size = 50_000_000
            await client.say(head(f"POST {CHAT}", f"content-length: {size}"))

            async def send() -> None:
                for _ in range(size // 1_000_000):
                    await client.say(b"x" * 1_000_000)

            sending = asyncio.create_task(send())
            status, headers, _ = await client.answer()
            assert (status, headers[b"connection"]) == (413, b"close")
            await sending
            assert await client.silence() == b""
        async with connected(g.port) as client:
            assert (await ask(client, chat()))[0] == 502


async def test_a_key_in_a_trailer_is_no_key() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        body = chat()
        lines = [f"POST {CHAT} HTTP/1.1", "host: gateway", "transfer-encoding: chunked"]
        sent = "\r\n".join(lines).encode() + b"\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(body), body)
        await client.say(sent + AUTHORIZED.encode() + b"\r\n\r\n")
        assert (await client.answer())[0] == 401
        assert upstream.received == []


async def test_calls_hidden_in_the_body_of_an_upgrade_are_only_a_body() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        hidden = post(CHAT, chat(), AUTHORIZED)
        offer = post(CHAT, hidden, AUTHORIZED, "connection: upgrade", "upgrade: h2c")
        await client.say(offer.removesuffix(hidden))
        await client.say(hidden)
        assert (await client.answer())[0] == 400
        assert (await ask(client, chat()))[0] == 200
        assert len(upstream.received) == 1


@pytest.mark.parametrize(
    ("request_line", "status", "code"),
    [
        ("GET /v1/chat/completions", 405, "malformed_call"),
        ("DELETE /v1/chat/completions", 405, "malformed_call"),
        ("POST /v1/models", 405, "malformed_call"),
        ("GET /", 404, "no_route"),
        ("POST /v1/unknown", 404, "no_route"),
        ("POST /v1/chat/completions/", 404, "no_route"),
        ("POST /v1//chat/completions", 404, "no_route"),
        ("POST /../admin", 404, "no_route"),
        ("POST /%2e%2e/policy", 404, "no_route"),
        ("GET /policy", 404, "no_route"),
        ("GET /metrics", 404, "no_route"),
    ],
)
async def test_paths_and_methods_that_do_not_exist_are_refused(request_line: str, status: int, code: str) -> None:
    async with gate() as g, connected(g.port) as client:
        await client.say(head(request_line, "content-length: 2") + b"{}")
        answered, headers, body = await client.answer()
        assert (answered, orjson.loads(body)["error"]["code"]) == (status, code)
        if status == 405:
            assert headers[b"allow"] in (b"POST", b"GET")


async def test_an_unknown_model_has_no_route() -> None:
    async with gate() as g, connected(g.port) as client:
        status, _, body = await ask(client, chat(model="unheard-of"))
        assert (status, body["error"]["code"]) == (404, "no_route")
        assert [record["record"] for record in g.ledger.records] == ["intent", "outcome"]


async def test_a_model_whose_targets_have_no_such_operation_has_no_route() -> None:
    async with gate() as g, connected(g.port) as client:
        status, _, body = await ask(client, orjson.dumps({"model": "claude-3", "input": "a"}), "/v1/embeddings")
        assert (status, body["error"]["code"]) == (404, "no_route")


async def test_anthropic_refusals_have_anthropics_shape() -> None:
    async with gate(script=DENIED) as g, connected(g.port) as client:
        status, headers, body = await ask(client, chat(model="claude-3", max_tokens=5), "/v1/messages")
        assert status == 403
        assert body["type"] == "error"
        assert body["error"]["type"] == "permission_error"
        assert body["request_id"] == headers[b"x-weighbridge-call"].decode()


async def test_listing_models_asks_the_policy_and_no_target() -> None:
    async with gate(routes=[{"name": "r", "models": ["gpt-4o", "gpt-*"], "arms": [{"target": "primary"}]}]) as g:
        async with connected(g.port) as client:
            await client.say(head("GET /v1/models"))
            status, _, body = await client.answer()
        assert status == 200
        assert [card["id"] for card in orjson.loads(body)["data"]] == ["gpt-4o"]
        assert g.engine.documents[0]["call"]["operation"] == "models"


async def test_a_stream_passes_event_by_event_and_its_usage_is_kept_here() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        status, headers, body = await client.answer()
        assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
        assert orjson.loads(upstream.received[0].body)["stream_options"] == {"include_usage": True}
        assert body == upstream.stream(include_usage=True).replace(upstream.usage_event, b"")
        assert (await g.ledger.outcome())["usage"]["output_tokens"] == 3


async def test_an_agent_that_asks_for_usage_gets_it() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        sent = chat(stream=True, stream_options={"include_usage": True})
        await client.say(post(CHAT, sent, AUTHORIZED))
        assert (await client.answer())[2] == upstream.stream(include_usage=True)
        assert upstream.received[0].body == sent


@pytest.mark.parametrize("path", ["cut", "end-early", "cut-mid-event"])
async def test_a_stream_that_breaks_ends_in_an_error_event(path: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/" + path) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        status, _, body = await client.answer()
        assert status == 200
        last = body.rstrip().split(b"\n\n")[-1]
        assert orjson.loads(last.removeprefix(b"data: "))["error"]["code"] == "target_failed"
        assert (await g.ledger.outcome())["code"] == "target_failed"


async def test_a_last_event_without_its_blank_line_is_an_end_all_the_same() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/unterminated") as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        assert (await client.answer())[2].endswith(b"data: [DONE]\n\n")
        assert (await g.ledger.outcome())["code"] == "ok"


async def test_a_stream_that_breaks_before_its_first_event_is_a_refusal() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/cut-at-once") as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        status, _, body = await client.answer()
        assert (status, orjson.loads(body)["error"]["code"]) == (502, "target_failed")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("reset", 502, "target_failed"),
        ("garbage", 502, "target_failed"),
        ("short-body", 502, "target_failed"),
        ("encoded", 502, "target_failed"),
        ("redirect", 502, "target_failed"),
        ("status-799", 502, "target_failed"),
        ("silence", 504, "target_timeout"),
    ],
)
async def test_a_broken_target_is_told_from_a_refusal_of_ours(path: str, status: int, code: str) -> None:
    timeouts = {"timeouts": {"first_byte": 0.2}}
    async with (
        target() as upstream,
        gate(target_url=upstream.url + "/" + path, target=timeouts) as g,
        connected(g.port) as client,
    ):
        answered, _, body = await ask(client, chat())
        assert (answered, body["error"]["code"]) == (status, code)
        assert upstream.url.removeprefix("http://") not in repr(body)
        record = await g.ledger.outcome()
        assert record["code"] == code
        assert record["detail"]


async def test_a_streamed_call_that_is_answered_without_a_stream_is_a_failure() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/not-a-stream") as g, connected(g.port) as client:
        status, _, body = await ask(client, chat(stream=True))
        assert (status, body["error"]["code"]) == (502, "target_failed")


async def test_a_stream_is_a_stream_however_its_type_is_written() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/odd-case") as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        _, _, body = await client.answer()
        assert upstream.usage_event not in body
        assert (await g.ledger.outcome())["usage"]["output_tokens"] == 3


async def test_a_target_that_repeats_its_key_does_not_tell_it_to_agents() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/echo") as g, connected(g.port) as client:
        _, headers, body = await ask(client, chat())
        assert "the-operators-own-key" not in repr(body) + repr(headers)
        assert body["headers"]["authorization"] == "Bearer " + "*" * len("the-operators-own-key")


async def test_headers_that_a_target_names_in_connection_stay_here() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/named-hop") as g, connected(g.port) as client:
        _, headers, _ = await ask(client, chat())
        assert b"x-secret" not in headers
        assert headers[b"x-open"] == b"2"


@pytest.mark.parametrize("said", ["application/x-www-form-urlencoded", "application/json; charset=utf-7", "text/plain"])
async def test_a_target_is_told_that_the_body_is_what_it_was_read_as(said: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(), AUTHORIZED, f"content-type: {said}", "content-type: application/yaml"))
        assert (await client.answer())[0] == 200
        types = [value for name, value in upstream.received[0].headers if name == b"content-type"]
        assert types == [b"application/json"]


@pytest.mark.parametrize(
    ("query", "passed"),
    [("", ""), ("?beta=true", "?beta=true"), ("?model=evil&beta=true&api-version=1", "?beta=true"), ("?x#y", "")],
)
async def test_no_query_passes_that_the_policy_does_not_see(query: str, passed: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        await ask(client, chat(), CHAT + query)
        assert upstream.received[0].path == "/chat/completions" + passed


async def test_zeros_that_lead_a_length_mean_nothing() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        zeros = "0" * 5000
        await client.say(head(f"POST {CHAT}", f"content-length: {zeros}{len(chat())}") + chat())
        assert (await client.answer())[0] == 200


async def test_a_target_that_is_not_there_is_a_failure() -> None:
    async with gate() as g, connected(g.port) as client:
        status, _, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (502, "target_failed")


async def test_a_targets_own_error_is_passed_on_as_it_is() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/status-429") as g, connected(g.port) as client:
        status, headers, body = await ask(client, chat())
        assert (status, headers[b"retry-after"], body) == (429, b"7", {"error": {"message": "slow down"}})
        record = await g.ledger.outcome()
        assert (record["code"], record["target_status"]) == ("ok", 429)


async def test_an_answer_of_several_megabytes_passes_and_its_usage_is_found() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/large") as g, connected(g.port) as client:
        status, _, body = await ask(client, orjson.dumps({"model": "text-1", "input": "x"}), "/v1/embeddings")
        assert (status, len(body["data"])) == (200, 3_000_000)
        assert (await g.ledger.outcome())["usage"]["input_tokens"] == 9


async def test_a_large_answer_that_breaks_off_drops_the_connection() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/large-cut") as g, connected(g.port) as client:
        await client.say(post("/v1/embeddings", orjson.dumps({"model": "text-1", "input": "x"}), AUTHORIZED))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.answer()
        assert (await g.ledger.outcome())["code"] == "target_failed"


async def test_an_agent_that_leaves_cancels_the_target() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/silence") as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(), AUTHORIZED))
        await upstream.arrived.wait()
        client.hang_up()
        await asyncio.wait_for(upstream.left.wait(), 10)
        assert (await g.ledger.outcome())["code"] == "client_gone"


async def test_an_agent_that_leaves_mid_stream_cancels_the_target() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/endless") as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        await client.reader.readuntil(b"data: ")
        client.hang_up()
        await asyncio.wait_for(upstream.left.wait(), 10)
        assert (await g.ledger.outcome())["code"] == "client_gone"


async def test_an_agent_that_does_not_read_slows_the_target_down() -> None:
    async with target() as upstream, gate(target_url=upstream.url + "/flood") as g, connected(g.port) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a client that stops reading has no public form
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        await asyncio.wait_for(upstream.stuck.wait(), 10)
        assert upstream.sent < 40_000_000


async def test_a_body_that_does_not_come_is_given_up_and_recorded() -> None:
    async with gate(door_limits={"body_timeout": 0.1}) as g, connected(g.port) as client:
        await client.say(head(f"POST {CHAT}", "content-length: 50") + b"{")
        status, _, body = await client.answer()
        assert (status, orjson.loads(body)["error"]["code"]) == (408, "malformed_call")
        assert (await g.ledger.outcome())["code"] == "malformed_call"


async def test_a_ledger_that_cannot_be_written_stops_calls_before_they_are_made() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        g.ledger.failing = True
        status, headers, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
        assert headers[b"retry-after"]
        assert upstream.received == []


async def test_a_fault_of_our_own_is_an_error_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        raise RuntimeError("a secret detail")

    async with gate(script=script) as g, connected(g.port) as client:
        status, _, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert "secret" not in repr(body)
        assert "secret" not in repr(g.ledger.records)
    assert "a secret detail" in caplog.text


async def test_after_an_approval_the_policy_is_asked_again_and_may_still_deny() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        return DENIED if "approval" in document else ASKED

    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        async with deciding(g.pipeline.holds) as fay:
            status, _, body = await ask(client, chat())
            assert (status, body["error"]["code"]) == (403, "policy_denied")
            (asked,) = fay.seen
            seen = g.engine.documents[1]["approval"]
            assert (seen["id"], seen["roles"], seen["approvers"]) == (asked, ["finance"], ["fay"])
        assert upstream.received == []
        kept = await g.pipeline.holds.store.get(asked)
        assert kept is not None
        assert kept.state is State.REVOKED


async def test_an_approved_call_is_claimed_once_and_sent() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        return ALLOWED if "approval" in document else ASKED

    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        async with deciding(g.pipeline.holds) as fay:
            status, headers, _ = await ask(client, chat())
            (asked,) = fay.seen
        assert (status, headers[b"x-weighbridge-approval"]) == (200, asked.encode())
        assert len(upstream.received) == 1
        outcome = await g.ledger.outcome()
        assert outcome["approval"] == asked
        assert "repeated" not in outcome
        events = [each["event"] for each in g.ledger.records if each["record"] == "approval"]
        assert events[:3] == ["requested", "approved", "consumed"]


def demanding(**obligations: Any) -> Decision:
    return dataclasses.replace(ALLOWED, obligations=read(obligations))


async def test_what_is_decided_on_last_is_what_is_sent_byte_for_byte() -> None:
    body = b'{ "model":"gpt-4o-mini", "messages":[ ] ,"ssn" : "078-05-1120"}'
    after = b'{"max_completion_tokens":50, "model":"gpt-4o-mini", "messages":[ ] ,"ssn" : "***"}'
    script = demanding(max_tokens=50, redact=["/arguments/ssn"], headers={"X-Team": "a", "user-agent": "gate"})
    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        status, headers, _ = await ask(client, body, CHAT, "user-agent: agent", "x-team: b")
        assert (status, headers[b"x-weighbridge-decision"]) == (200, b"ALLOW")
        (received,) = upstream.received
        assert received.body == after
        names = [line for line in received.headers if line[0] in (b"x-team", b"user-agent")]
        assert sorted(names) == [(b"user-agent", b"gate"), (b"x-team", b"a")]
        assert [document["call"]["arguments"].get("ssn") for document in g.engine.documents] == ["078-05-1120", "***"]
        record = await g.ledger.outcome()
        assert record["obligations"] == {
            "redact": ["/arguments/ssn"],
            "max_tokens": ["/arguments/max_completion_tokens"],
            "headers": ["x-team", "user-agent"],
        }
        assert [each["record"] for each in g.ledger.records] == ["decision", "intent", "outcome"]
        assert [each["decision_id"] for each in g.ledger.decisions()] == [f"{record['call']}-1", f"{record['call']}-2"]
        assert "078-05-1120" not in repr(g.ledger.records)


async def test_a_policy_that_refuses_what_its_own_edits_made_of_a_call_has_refused_it() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        edited = document["call"]["arguments"].get("base") == "develop"
        return DENIED if edited else demanding(replace={"/arguments/base": "develop"})

    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        assert (await ask(client, chat(base="main")))[0] == 403
        assert upstream.received == []
        assert [each["record"] for each in g.ledger.records] == ["decision", "decision", "outcome"]


async def test_a_policy_that_is_never_content_is_asked_four_times() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        return demanding(replace={"/arguments/seed": document["call"]["arguments"].get("seed", 0) + 1})

    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        status, _, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (403, "policy_denied")
        assert "after 4 changes" in body["error"]["message"]
        assert (len(g.engine.documents), upstream.received) == (4, [])


async def test_headers_and_route_are_those_of_the_decision_on_what_is_sent() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        edited = "seed" in document["call"]["arguments"]
        return ALLOWED if edited else demanding(replace={"/arguments/seed": 1}, headers={"x-a": "1"}, route="renamed")

    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        await ask(client, chat())
        assert b"x-a" not in dict(upstream.received[0].headers)
        assert (await g.ledger.outcome())["route"] == "chat"


async def test_a_forced_route_carries_a_model_that_it_would_not_match() -> None:
    script = demanding(route="renamed")
    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        await ask(client, chat())
        assert orjson.loads(upstream.received[0].body)["model"] == "real/name"
        record = await g.ledger.outcome()
        assert (record["route"], record["obligations"]) == ("renamed", {"route": "renamed"})


async def test_a_route_that_cannot_serve_the_call_makes_the_yes_a_no() -> None:
    async with gate(script=demanding(route="claude")) as g, connected(g.port) as client:
        asked = orjson.dumps({"model": "text-embedding-3-small", "input": "a"})
        status, headers, body = await ask(client, asked, "/v1/embeddings")
        assert (status, headers[b"x-weighbridge-decision"]) == (403, b"DENY")
        assert "'claude' has no target that serves embeddings" in body["error"]["message"]
        intended = g.ledger.decisions()[0]
        assert (intended["record"], intended["result"]["decision"]) == ("decision", "ALLOW")
        record = await g.ledger.outcome()
        assert (record["decision"], record["explanation"]) == ("DENY", body["error"]["message"])


async def test_a_sampled_call_tells_its_target_so_and_its_record_which_trace_it_is() -> None:
    script = demanding(sample=True)
    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        await ask(client, chat())
        sent = dict(upstream.received[0].headers)[b"traceparent"].decode()
        assert sent.endswith("-01")
        assert sent[3:35] == g.ledger.decisions()[0]["trace_id"]
        assert (await g.ledger.outcome())["obligations"] == {"sample": True}


async def test_a_list_of_models_is_within_all_obligations_that_exist() -> None:
    async with gate(script=demanding(max_tokens=5, redact=["/arguments/a"], route="chat")) as g:
        async with connected(g.port) as client:
            await client.say(head("GET /v1/models"))
            assert (await client.answer())[0] == 200


async def test_people_approve_the_call_as_it_will_be_sent() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        effect = Effect.ALLOW if "approval" in document else Effect.NEEDS_APPROVAL
        return dataclasses.replace(demanding(redact=["/arguments/ssn"]), effect=effect)

    async with target() as upstream:
        async with gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
            async with deciding(g.pipeline.holds, name="dana", roles=["admin"]) as dana:
                assert (await ask(client, chat(ssn="078-05-1120")))[0] == 200
                (asked,) = dana.seen.values()
            assert orjson.loads(asked.call.body)["ssn"] == "***"
            seen = [document["call"]["arguments"]["ssn"] for document in g.engine.documents]
            assert seen == ["078-05-1120", "***", "***"]
            assert [each["record"] for each in g.ledger.decisions()] == ["decision", "decision", "intent"]
        assert orjson.loads(upstream.received[0].body)["ssn"] == "***"


async def test_a_call_that_is_to_be_changed_after_its_approval_is_refused() -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        return demanding(max_tokens=5) if "approval" in document else ASKED

    async with target() as upstream, gate(target_url=upstream.url, script=script) as g, connected(g.port) as client:
        async with deciding(g.pipeline.holds) as fay:
            status, _, body = await ask(client, chat())
            assert (status, body["error"]["code"]) == (403, "policy_denied")
            assert (
                "People have approved this call, and the policy, asked again, wants another one sent."
                in body["error"]["message"]
            )
            (asked,) = fay.seen
        assert upstream.received == []
        kept = await g.pipeline.holds.store.get(asked)
        assert kept is not None
        assert kept.state is State.REVOKED


async def test_a_thousand_calls_cut_at_random_moments_leave_nothing_behind() -> None:
    """No task, no socket, no call without its one record."""
    dice = random.Random(7)
    async with target() as upstream, gate(target_url=upstream.url + "/pace") as g:
        before = asyncio.all_tasks()

        async def one(patience: float) -> bool:
            async with connected(g.port) as client:
                await client.say(post(CHAT, chat(stream=dice.random() < 0.5), AUTHORIZED))
                try:
                    async with asyncio.timeout(dice.random() * patience):
                        await client.answer()
                except TimeoutError:
                    return False
                return True

        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(one(1000) for _ in range(50)))
        pace = loop.time() - began  # so that, on any machine, moments of a call are what is drawn
        finished = []
        for _ in range(20):
            finished += await asyncio.gather(*(one(2 * pace) for _ in range(50)))
        assert 0 < sum(finished) < 1000, "some calls must be cut and some must not, or this test shows nothing"
        await settled(g, before, upstream)
        outcomes = [record["call"] for record in g.ledger.outcomes()]
        assert len(outcomes) == len(set(outcomes))
        assert set(outcomes) >= {record["call"] for record in g.ledger.records if record["record"] == "intent"}
        assert len(outcomes) == sum(g.telemetry.calls.values())


async def settled(g: Gate, before: set["asyncio.Task[Any]"], upstream: Target) -> None:
    """Returns once no call is under way and nothing of them is left; fails after ten seconds.

    What may be left are the target's own tasks, one for each pooled connection.
    """
    async with asyncio.timeout(10):
        while (
            g.telemetry.in_flight
            or upstream.open > pooled(g.carriers)
            or len(asyncio.all_tasks() - before) > upstream.open
        ):
            await asyncio.sleep(0.01)  # sockets of other parties close when they close: there is no event of ours


def pooled(carriers: list[Carrier]) -> int:
    assert all(carrier.statistics().busy == 0 for carrier in carriers)
    return sum(carrier.statistics().idle for carrier in carriers)
