"""What clients are told that have to log in."""

from typing import Any

import orjson
import pytest
from mcp.shared.auth import ProtectedResourceMetadata
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url

from config.settings import OAuthSettings
from gateway.oauth.metadata import WELL_KNOWN, challenge, document, resource_of


def oauth(resource: str = "https://gw.test", **said: Any) -> OAuthSettings:
    issuers = [{"issuer": "https://login.test/acme", "jwks_url": "https://login.test/acme/jwks"}]
    return OAuthSettings.model_validate({"resource": resource, "issuers": issuers, **said})


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/mcp/github", "https://gw.test/mcp/github"),
        ("/mcp/github/", "https://gw.test/mcp/github"),
        ("/mcp/all", "https://gw.test/mcp/all"),
        ("/mcp/", "https://gw.test"),
        ("/mcp/a/b", "https://gw.test"),
        ("/mcp/..", "https://gw.test"),
        ('/mcp/"x', "https://gw.test"),
        ("/v1/messages", "https://gw.test"),
    ],
)
def test_each_server_is_a_resource_and_everything_else_is_one_together(path: str, resource: str) -> None:
    assert resource_of("https://gw.test", path) == resource


@pytest.mark.parametrize(
    "base", ["https://gw.test", "https://gw.test/", "http://127.0.0.1:8080", "https://gw.test/agents"]
)
def test_a_client_finds_the_document_of_what_it_called(base: str) -> None:
    settings = oauth(base, scopes=["mcp:tools"])
    called = f"{settings.resource}/mcp/github"
    told = challenge(settings, "/mcp/github").decode()
    at = told.partition('resource_metadata="')[2].partition('"')[0]
    assert told.startswith("Bearer ")
    path = WELL_KNOWN + at.partition(WELL_KNOWN)[2]
    found = document(settings, path)
    assert found is not None
    metadata = ProtectedResourceMetadata.model_validate_json(found)
    assert str(metadata.resource) == called
    assert check_resource_allowed(resource_url_from_server_url(called), str(metadata.resource))
    assert [str(each) for each in metadata.authorization_servers] == ["https://login.test/acme"]
    assert metadata.scopes_supported == ["mcp:tools"]


def test_the_gateway_as_a_whole_has_a_document_too() -> None:
    for path in (WELL_KNOWN, f"{WELL_KNOWN}/"):
        assert orjson.loads(document(oauth(), path) or b"null") == {
            "resource": "https://gw.test",
            "authorization_servers": ["https://login.test/acme"],
            "bearer_methods_supported": ["header"],
        }


@pytest.mark.parametrize("below", ["/v1", "/mcp", "/mcp/", "/mcp/a/b", "x", "/tools/crm", "/mcp/%22", "/mcp/é"])
def test_there_is_none_for_what_is_no_resource(below: str) -> None:
    assert document(oauth(), WELL_KNOWN + below) is None


def test_a_challenge_says_what_was_wrong_and_which_scopes_are_needed() -> None:
    settings = oauth(scopes=["a", "b:c"])
    at = f'resource_metadata="https://gw.test{WELL_KNOWN}/mcp/up"'
    assert challenge(settings, "/mcp/up").decode() == f"Bearer {at}"
    assert (
        challenge(settings, "/mcp/up", "insufficient_scope", settings.scopes).decode()
        == f'Bearer {at}, scope="a b:c", error="insufficient_scope"'
    )
    assert challenge(None, "/mcp/up", "invalid_token") == b"Bearer"
