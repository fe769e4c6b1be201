"""Logging in at a gateway, over its own front door; and what of it goes on to tools."""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson
import pytest
from mcp.server import MCPServer

from gateway.identity import Unauthenticated
from gateway.oauth.metadata import WELL_KNOWN
from tests.support import mcp_servers
from tests.support.authorization import AuthorizationServer, serving
from tests.support.door import door
from tests.support.exchanges import AGENT_KEY, settings
from tests.support.gate import Gate, gate

AGENTS = [
    {"name": "support-bot", "tenant": "acme", "key": AGENT_KEY, "subject": "bots-client"},
    {"name": "other-bot", "tenant": "acme", "subject": "others-client"},
]
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": dict[str, Any](),
}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "f", "arguments": dict[str, Any](), "_meta": META},
}
MCP = {
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/call",
    "mcp-name": "f",
}
SECRETS = {
    "cookie": "session=agents-cookie",
    "proxy-authorization": "Bearer agents-proxy-key",
    "x-forwarded-authorization": "agents-forwarded-key",
}


class Upstream:
    """A tool of either kind that takes down what it is sent, and lets in whom it is told to."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.lets_in: str | None = None
        """The `Authorization` that it wants; anything will do when None."""
        self.ran = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.came.append((headers, body))
        shown = headers.get("authorization", "")
        status = 200 if self.lets_in is None or shown == self.lets_in else 401
        asked = orjson.loads(body) if body else {}
        answer: dict[str, Any] = {"you": shown}
        if asked.get("method") == "tools/list":
            tool = {"name": "f", "inputSchema": {"type": "object"}}
            result = {"tools": [tool], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
            answer = {"jsonrpc": "2.0", "id": asked["id"], "result": result}
        elif asked.get("method") == "tools/call" and status == 200:
            self.ran += 1
            content = [{"type": "text", "text": f"you showed {shown}"}]
            result = {"content": content, "resultType": "complete", "isError": False}
            answer = {"jsonrpc": "2.0", "id": asked["id"], "result": result}
        said = orjson.dumps(answer)
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": said})


@asynccontextmanager
async def stage(**said: Any) -> AsyncIterator[tuple[AuthorizationServer, Upstream, Gate, httpx2.AsyncClient]]:
    """An authorization server, a tool behind the gateway in both kinds, and a client without a key. `said` is added to
    the tools; `oauth` to the section of that name."""
    upstream, oauth = Upstream(), said.pop("oauth", {})
    async with serving() as server, door(upstream) as port:
        if "login" in said:
            said["oauth"] = {
                "token_url": f"{server.issuer}/token", "client_id": "bots-client", "client_secret": "bots:secret/ä",
                **said.pop("login"),
            }  # fmt: skip
        issuers = [{"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks"}]
        async with gate(
            agents=AGENTS,
            oauth={"resource": "https://gw.test", "issuers": issuers, **oauth},
            tools=[
                {"name": "up", "kind": "mcp", "url": f"http://127.0.0.1:{port}/mcp", **said},
                {"name": "crm", "kind": "http", "url": f"http://127.0.0.1:{port}", **said},
            ],
        ) as g:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{g.port}") as client:
                yield server, upstream, g, client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_a_client_that_shows_nothing_is_told_where_to_log_in() -> None:
    async with stage(oauth={"scopes": ["mcp:tools"]}) as (_, _, _, client):
        for server in ("up", "no-such-server"):
            answer = await client.post(f"/mcp/{server}", json=CALL, headers=MCP)
            assert answer.status_code == 401
            assert answer.json()["error"]["data"]["code"] == "unauthenticated"
            assert "Log in" in answer.json()["error"]["message"]
            at = f'resource_metadata="https://gw.test{WELL_KNOWN}/mcp/{server}"'
            assert answer.headers["www-authenticate"] == f'Bearer {at}, scope="mcp:tools"'
        answer = await client.post("/v1/chat/completions", json={})
        assert f'resource_metadata="https://gw.test{WELL_KNOWN}"' in answer.headers["www-authenticate"]
        assert answer.json()["error"]["code"] == "unauthenticated"
        answer = await client.get("/approvals/apr_00000000000000000000000000")
        assert "resource_metadata" in answer.headers["www-authenticate"]


async def test_a_bad_token_is_invalid_and_nothing_of_it_is_told_or_recorded() -> None:
    async with stage() as (server, upstream, g, client):
        bad = server.token(aud="https://somebody.else")
        for shown in (bad, "not-a-key", "a.b.c"):
            answer = await client.post("/mcp/up", json=CALL, headers={**MCP, **bearer(shown)})
            assert answer.status_code == 401
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
            assert shown not in answer.text
            assert not any(shown in str(record) for record in g.ledger.records)
        assert upstream.came == []
        assert [record["code"] for record in g.ledger.outcomes()] == ["unauthenticated"] * 3


async def test_a_token_lets_its_agent_call_everything_that_it_is_for() -> None:
    async with stage() as (server, _, g, client):
        everywhere, here = server.token(), server.token(aud="https://gw.test/mcp/up", sub="others-client")
        for token in (everywhere, here):
            answer = await client.post("/mcp/up", json=CALL, headers={**MCP, **bearer(token)})
            assert answer.json()["result"]["isError"] is False, answer.text
        assert (await client.get("/tools/crm/x", headers=bearer(everywhere))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(everywhere))).status_code == 200
        assert (await client.get("/tools/crm/x", headers=bearer(here))).status_code == 401
        assert (await client.get("/v1/models", headers=bearer(here))).status_code == 401
        named = {str(document["agent"]["name"]) for document in g.engine.documents}
        assert named == {"support-bot", "other-bot"}
        assert not any(token in str(g.ledger.records) + str(g.engine.documents) for token in (everywhere, here))


async def test_keys_go_on_beside_tokens_and_one_call_shows_one_of_them() -> None:
    async with stage() as (server, _, _, client):
        answer = await client.post("/mcp/up", json=CALL, headers={**MCP, **bearer(AGENT_KEY)})
        assert answer.status_code == 200
        assert server.asked["/jwks"] == 0, "a key is nothing to ask others about"
        token = server.token()
        for headers in ({**bearer(token), "x-api-key": AGENT_KEY}, {"x-api-key": token}):
            answer = await client.post("/mcp/up", json=CALL, headers={**MCP, **headers})
            assert answer.status_code == 401


async def test_a_token_without_a_scope_is_refused_and_the_client_told_which_to_ask_for() -> None:
    async with stage(oauth={"scopes": ["mcp:tools", "mcp:more"]}) as (server, upstream, g, client):
        for path in ("/mcp/up", "/tools/crm/x", "/approvals/apr_00000000000000000000000000"):
            answer = await client.request(
                "GET" if "/mcp" not in path else "POST",
                path,
                content=orjson.dumps(CALL),
                headers={**MCP, **bearer(server.token())},
            )
            assert answer.status_code == 403
            assert 'scope="mcp:tools mcp:more", error="insufficient_scope"' in answer.headers["www-authenticate"]
        assert upstream.came == []
        assert {record["code"] for record in g.ledger.outcomes()} == {"policy_denied"}


@pytest.mark.parametrize("path", ["/mcp/up", "/tools/crm/x"])
@pytest.mark.parametrize("kind", ["key", "token", "x-api-key"])
async def test_what_an_agent_shows_goes_to_no_tool(path: str, kind: str) -> None:
    async with stage(key="the-gateways-own-key") as (server, upstream, _, client):
        token = server.token()
        shown = {"key": bearer(AGENT_KEY), "token": bearer(token), "x-api-key": {"x-api-key": AGENT_KEY}}[kind]
        answer = await client.post(path, json=CALL, headers={**MCP, **SECRETS, **shown})
        assert answer.status_code == 200
        assert upstream.came
        for headers, body in upstream.came:
            assert headers["authorization"] == "Bearer the-gateways-own-key"
            assert not {"x-api-key", "cookie", *SECRETS} & headers.keys()
            sent = str(headers) + body.decode()
            assert not any(each in sent for each in (AGENT_KEY, token, *SECRETS.values()))
        assert "the-gateways-own-key" not in answer.text


@pytest.mark.parametrize("path", ["/mcp/up", "/tools/crm/x"])
async def test_a_tool_without_a_key_is_shown_none(path: str) -> None:
    async with stage() as (server, upstream, _, client):
        await client.post(path, json=CALL, headers={**MCP, **SECRETS, **bearer(server.token())})
        assert upstream.came
        assert all("authorization" not in headers for headers, _ in upstream.came)


@pytest.mark.parametrize("path", ["/mcp/up", "/tools/crm/x"])
async def test_the_gateway_logs_in_at_a_tool_and_again_when_it_is_let_in_no_more(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.oauth.client_credentials._PAUSE", 0.0)
    async with stage(login={"resource": "https://tool.test/mcp", "scope": ["write"]}) as (server, upstream, _, client):

        async def called() -> httpx2.Response:
            return await client.post(path, json=CALL, headers={**MCP, **bearer(AGENT_KEY)})

        assert (await called()).status_code == 200
        first = upstream.came[-1][0]["authorization"]
        assert (await called()).status_code == 200
        assert {headers["authorization"] for headers, _ in upstream.came} == {first}
        assert [(form["resource"], form["scope"]) for form in server.forms] == [("https://tool.test/mcp", "write")]
        upstream.lets_in = "the next one"
        ran, before = upstream.ran, len(upstream.came)
        answer = await called()
        assert answer.status_code in (401, 502, 200)
        assert len(upstream.came) == before + 2, "one call more, with one token more"
        assert upstream.ran == ran
        second = upstream.came[-1][0]["authorization"]
        assert second != first
        assert not any(each.removeprefix("Bearer ") in answer.text for each in (first, second))
        upstream.lets_in = second
        answer = await called()
        assert answer.status_code == 200
        assert second.removeprefix("Bearer ") not in answer.text, "the tool repeats it, and its agent must not see it"


@pytest.mark.parametrize("path", ["/mcp/up", "/tools/crm/x"])
async def test_a_login_that_fails_ends_the_call_in_words_before_the_tool_hears_of_it(path: str) -> None:
    async with stage(login={"client_secret": "not-the-secret"}) as (server, upstream, g, client):
        answer = await client.post(path, json=CALL, headers={**MCP, **bearer(AGENT_KEY)})
        assert "its authorization server answers 401 (invalid_client)" in answer.text
        assert "not-the-secret" not in answer.text
        assert server.issuer not in answer.text
        assert upstream.came == []
        assert (await g.ledger.outcome())["code"] == "target_failed"


async def test_a_token_has_to_be_valid_when_its_call_arrives_however_long_people_take() -> None:
    async with stage() as (server, _, g, _):
        login = g.pipeline.assembly.login
        now = 1_800_000_000.0
        shown = bearer(server.token(now=now))["authorization"].encode()
        agent = await login.identify(shown, None, "/mcp/up", now)
        with pytest.raises(Unauthenticated):
            await login.identify(shown, None, "/mcp/up", now + 1000)
        assert await login.identify(shown, None, "/mcp/up", now) is agent


async def test_an_agent_with_tokens_alone_has_no_key() -> None:
    async with stage() as (_, _, g, _):
        directory = g.pipeline.assembly.directory
        assert [agent.name for agent in directory] == ["support-bot", "other-bot"]
        assert len(directory) == 2
        for shown in (b"Bearer None", b"Bearer others-client"):
            with pytest.raises(Unauthenticated):
                directory.identify(shown, None)


def test_an_agent_without_any_credential_cannot_be_configured() -> None:
    with pytest.raises(ValueError, match="neither key nor key_sha256"):
        settings(agents=[{"name": "support-bot"}])


async def test_a_session_is_its_agents_whoever_else_may_log_in() -> None:
    server_side = MCPServer("upstream")
    async with serving() as server, mcp_servers.serving(server_side) as url:
        issuers = [{"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks"}]
        async with gate(
            agents=AGENTS,
            oauth={"resource": "https://gw.test", "issuers": issuers},
            tools=[{"name": "up", "kind": "mcp", "url": url}],
        ) as g:
            own, others = (bearer(server.token(sub=each)) for each in ("bots-client", "others-client"))
            accepts = {"accept": MCP["accept"]}
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{g.port}", headers=accepts) as client:
                begun = {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {},
                    "clientInfo": {"name": "c", "version": "1"},
                }
                hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": begun}
                session = (await client.post("/mcp/up", json=hello, headers=own)).headers["mcp-session-id"]
                ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
                said = {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
                statuses = [
                    (await client.post("/mcp/up", json=ping, headers={**said, **who})).status_code
                    for who in (others, own, bearer(AGENT_KEY), {})
                ]
                assert statuses == [404, 200, 200, 401]
