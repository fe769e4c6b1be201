"""Stock MCP clients find out where to log in, do so, and call: nothing about it stands in their configuration."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import yaml
from mcp.client import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp_types import TextContent
from pydantic import AnyUrl

from gateway.oauth.metadata import WELL_KNOWN
from tests.support import mcp_servers
from tests.support.authorization import AuthorizationServer, serving
from tests.support.exchanges import AGENT_KEY
from tests.support.process import Gateway, serving_beside

MODES = ("auto", "legacy")
POLICY = """\
package weighbridge
default decision := {"decision": "ALLOW"}
decision := {"decision": "DENY", "explanation": sprintf("This is %s.", [input.agent.name])} if {
    input.call.operation == "whoami"
}
"""


class Memory:
    """The client's own store."""

    def __init__(self, token: OAuthToken | None = None) -> None:
        self.token = token
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@asynccontextmanager
async def stage(folder: Path, **oauth: Any) -> AsyncIterator[tuple[Gateway, AuthorizationServer]]:
    """A gateway before a stock server, and who its agents log in at: written into the file while it serves."""
    upstream = MCPServer("upstream")

    @upstream.tool()
    def echo(text: str) -> str:
        return text

    @upstream.tool()
    def whoami() -> str:
        return "nobody is denied"

    (folder / "policy.rego").write_text(POLICY)
    async with mcp_servers.serving(upstream) as url, serving() as server:
        config: dict[str, Any] = {
            "listen": {"drain": 1},
            "policy": {"paths": ["policy.rego"]},
            "agents": [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY}],
            "tools": [{"name": "up", "kind": "mcp", "url": url}],
        }
        async with serving_beside(config, folder) as gateway:
            await no_word_of_logging_in(gateway)
            written = yaml.safe_load(gateway.config.read_text())
            written["agents"] = [
                {"name": "support-bot", "tenant": "acme", "key": AGENT_KEY, "subject": "bots-client"},
                {"name": "danas-laptop", "tenant": "acme", "subject": "dana"},
            ]
            issuers = [{"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks"}]
            written["oauth"] = {"resource": gateway.url, "issuers": issuers, **oauth}
            gateway.config.write_text(yaml.safe_dump(written))
            await until_answered(f"{gateway.url}{WELL_KNOWN}/mcp/up", 200)
            yield gateway, server


async def no_word_of_logging_in(gateway: Gateway) -> None:
    """As long as none is configured."""
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get(WELL_KNOWN)).status_code == 404
        answer = await client.post("/mcp/up", json={})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def until_answered(url: str, status: int, **options: Any) -> None:
    async with asyncio.timeout(10), httpx2.AsyncClient() as client:
        while (await client.get(url, **options)).status_code != status:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def logged_in(gateway: Gateway, mode: Any, provider: httpx2.Auth) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(auth=provider, timeout=20) as http:
        async with Client(streamable_http_client(f"{gateway.url}/mcp/up", http_client=http), mode=mode) as client:
            yield client


async def calls_as(client: Client, agent: str) -> None:
    assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
    said = await client.call_tool("echo", {"text": "hi"})
    assert isinstance(said.content[0], TextContent)
    assert (said.is_error, said.content[0].text) == (False, "hi")
    denied = await client.call_tool("whoami", {})
    assert isinstance(denied.content[0], TextContent)
    assert denied.is_error
    assert f"This is {agent}." in denied.content[0].text


def by_credentials(gateway: Gateway, server: AuthorizationServer, memory: Memory, **said: Any) -> httpx2.Auth:
    return ClientCredentialsOAuthProvider(
        server_url=f"{gateway.url}/mcp/up",
        storage=memory,
        client_id="bots-client",
        client_secret="bots:secret/ä",
        issuer=server.issuer,
        **said,
    )


def by_a_person(gateway: Gateway) -> httpx2.Auth:
    """Somebody at a browser, who says yes to whatever they are asked."""
    back: list[str] = []

    async def opened(url: str) -> None:
        async with httpx2.AsyncClient() as browser:
            back.append((await browser.get(url)).headers["location"])

    async def came_back() -> AuthorizationCodeResult:
        said = {name: values[0] for name, values in parse_qs(urlsplit(back.pop()).query).items()}
        return AuthorizationCodeResult(code=said["code"], state=said["state"], iss=said["iss"])

    return OAuthClientProvider(
        server_url=f"{gateway.url}/mcp/up",
        client_metadata=OAuthClientMetadata(
            client_name="Dana's client",
            redirect_uris=[AnyUrl("http://localhost:1/callback")],
            grant_types=["authorization_code"],
            token_endpoint_auth_method="none",
        ),
        storage=Memory(),
        redirect_handler=opened,
        callback_handler=came_back,
    )


async def test_programs_and_people_log_in_where_the_gateway_says(tmp_path: Path) -> None:
    async with stage(tmp_path, scopes=["mcp:tools"]) as (gateway, server):
        server.scopes, server.subject = "something else", "dana"
        for mode in MODES:
            async with logged_in(gateway, mode, by_credentials(gateway, server, Memory())) as client:
                await calls_as(client, "support-bot")
            async with logged_in(gateway, mode, by_a_person(gateway)) as client:
                await calls_as(client, "danas-laptop")
        assert len(server.forms) == 2 * len(MODES)
        for form in server.forms:
            assert form["resource"] == f"{gateway.url}/mcp/up", "the token is for this server alone"
        assert server.forms[0]["scope"] == "mcp:tools", "as the challenge has said"
        assert server.asked["/jwks"] == 1


async def test_a_client_whose_token_is_not_enough_logs_in_again(tmp_path: Path) -> None:
    async with stage(tmp_path, scopes=["mcp:tools", "mcp:more"]) as (gateway, server):
        for audience in (gateway.url, "https://somebody.else"):
            token = server.token(aud=audience)
            memory = Memory(OAuthToken(access_token=token, token_type="Bearer", scope="mcp:tools"))
            async with logged_in(gateway, "auto", by_credentials(gateway, server, memory)) as client:
                await calls_as(client, "support-bot")
            assert memory.token is not None
            assert memory.token.access_token != token
        assert {form["scope"] for form in server.forms} == {"mcp:tools mcp:more"}


async def test_an_agent_that_is_configured_no_more_is_nobody_within_a_second(tmp_path: Path) -> None:
    async with stage(tmp_path) as (gateway, server):
        headers = {"authorization": f"Bearer {server.token(aud=gateway.url)}"}
        await until_answered(f"{gateway.url}/v1/models", 200, headers=headers)
        written = yaml.safe_load(gateway.config.read_text())
        del written["agents"][0]["subject"]
        gateway.config.write_text(yaml.safe_dump(written))
        await until_answered(f"{gateway.url}/v1/models", 401, headers=headers)
        await until_answered(f"{gateway.url}/v1/models", 200, headers={"x-api-key": AGENT_KEY})
        recorded = b"".join(path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file())
        assert b"danas-laptop" in recorded, "files were read"
        assert headers["authorization"].removeprefix("Bearer ").encode() not in recorded
