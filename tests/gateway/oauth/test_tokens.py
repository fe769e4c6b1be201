"""Whose token it is, and which tokens are nobody's."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity import Agent, Directory, Unauthenticated
from gateway.oauth.tokens import ScopeMissing, Tokens, claimed
from tests.support.authorization import AuthorizationServer, private_key, public_jwk, serving
from tests.support.exchanges import settings

NOW = 1_800_000_000.0
AGENTS = [
    {"name": "support-bot", "tenant": "acme", "subject": "bots-client"},
    {"name": "other-bot", "tenant": "acme", "key": "other-bots-own-key", "subject": "others-client"},
]


@pytest.fixture
async def server() -> AsyncIterator[AuthorizationServer]:
    async with serving(keys=("rsa-1", "ec-1", "ed-1")) as each:
        yield each


def tokens(server: AuthorizationServer, issuer: dict[str, Any] | None = None, **oauth: Any) -> Tokens:
    written = settings(
        agents=AGENTS,
        oauth={
            "resource": "https://gw.test",
            "issuers": [{"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks", **(issuer or {})}],
            **oauth,
        },
    )
    assert written.oauth is not None
    return Tokens(written.oauth, Directory(written.agents, written.oauth.issuers))


async def shown(at: Tokens, token: str | bytes, path: str = "/mcp/up", now: float = NOW) -> Agent:
    raw = token.encode() if isinstance(token, str) else token
    return await at.identify(raw, hashlib.sha256(raw).digest(), path, now)


async def refused(at: Tokens, token: str | bytes, path: str = "/mcp/up", now: float = NOW) -> str:
    with pytest.raises(Unauthenticated) as error:
        await shown(at, token, path, now)
    assert error.value.shown
    raw = token if isinstance(token, str) else token.decode("latin-1")
    assert len(raw) < 20 or raw not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", ["rsa-1", "ec-1", "ed-1"])
@pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt", "JWT", None])
async def test_a_token_is_the_agents_whom_its_issuer_means(
    server: AuthorizationServer, key: str, typ: str | None
) -> None:
    agent = await shown(tokens(server), server.token(key=key, header={"typ": typ}, now=NOW))
    assert (agent.name, agent.tenant) == ("support-bot", "acme")


async def test_each_subject_is_another_agent_and_an_unknown_one_is_nobody(server: AuthorizationServer) -> None:
    at = tokens(server)
    assert (await shown(at, server.token(sub="others-client", now=NOW))).name == "other-bot"
    said = await refused(at, server.token(sub="support-bot", now=NOW))
    assert "nobody who is configured" in said
    assert "'support-bot'" in said
    assert "`subject`" in said


async def test_a_token_for_somebody_else_is_told_for_whom_and_for_whom_one_is_wanted(
    server: AuthorizationServer,
) -> None:
    said = await refused(tokens(server), server.token(aud="https://api.test/", now=NOW))
    assert "'https://api.test'" in said
    assert "https://gw.test/mcp/up" in said
    assert "names no audience" in await refused(tokens(server), server.token(aud=None, now=NOW))
    many = [f"https://{'a' * 500}{number}.test" for number in range(50)]
    assert len(await refused(tokens(server), server.token(aud=many, now=NOW))) < 1000


async def test_another_claim_can_name_the_agent(server: AuthorizationServer) -> None:
    at = tokens(server, {"claim": "client_id"})
    assert (await shown(at, server.token(sub="a user", client_id="others-client", now=NOW))).name == "other-bot"
    assert "whose it is" in await refused(at, server.token(now=NOW))
    assert "whose it is" in await refused(at, server.token(client_id=["others-client"], now=NOW))


@pytest.mark.parametrize(
    ("audience", "paths"),
    [
        ("https://gw.test", {"/mcp/up", "/mcp/other", "/v1/messages"}),
        ("https://GW.test/", {"/mcp/up", "/mcp/other", "/v1/messages"}),
        ("https://gw.test/mcp/up", {"/mcp/up", "/mcp/up/"}),
        ("https://gw.test/mcp/up/", {"/mcp/up"}),
        (["https://api.test", "https://gw.test/mcp/up"], {"/mcp/up"}),
        ("weighbridge", {"/mcp/up", "/v1/messages"}),
        ("https://gw.test/mcp/", set()),
        ("https://gw.test/mcp/u", set()),
        ("https://gw.test/mcp/up/../other", set()),
        ("https://gw.test.evil", set()),
        ("http://gw.test", set()),
        ("https://gw.test:443", set()),
        ("https://login.test", set()),
        ("", set()),
        ([], set()),
        (None, set()),
        (7, set()),
        ([["https://gw.test"]], set()),
        ("[", set()),
        ("//[", set()),
    ],
)
async def test_a_token_is_good_for_what_it_was_issued_for(
    server: AuthorizationServer, audience: Any, paths: set[str]
) -> None:
    at, token = tokens(server, audiences=["weighbridge"]), server.token(aud=audience, now=NOW)
    for path in ("/mcp/up", "/mcp/up/", "/mcp/other", "/v1/messages", "/mcp/", "/mcp/../mcp/up"):
        if path in paths or (audience in ("https://gw.test", "https://GW.test/", "weighbridge")):
            assert (await shown(at, token, path)).name == "support-bot"
        elif not (path == "/mcp/up/" and "/mcp/up" in paths):
            assert "for somebody else" in await refused(at, token, path)


async def test_a_token_without_an_audience_is_for_nobody(server: AuthorizationServer) -> None:
    assert "for somebody else" in await refused(tokens(server), server.token(without=("aud",), now=NOW))


@pytest.mark.parametrize("issuer", ["https://login.evil", "", None, 7, ["x"]])
async def test_no_other_issuer_is_believed(server: AuthorizationServer, issuer: Any) -> None:
    assert "not trusted" in await refused(tokens(server), server.token(iss=issuer, now=NOW))
    assert "not trusted" in await refused(tokens(server), server.token(without=("iss",), now=NOW))
    assert server.asked["/jwks"] == 0, "whoever is not trusted has nobody asked for keys"


async def test_an_issuer_is_named_letter_by_letter(server: AuthorizationServer) -> None:
    assert "not trusted" in await refused(tokens(server), server.token(iss=f"{server.issuer}/", now=NOW))


async def test_time_is_as_the_token_says_within_the_leeway(server: AuthorizationServer) -> None:
    at, token = tokens(server, leeway="30s"), server.token(now=NOW, nbf=int(NOW) + 10)
    for now in (NOW - 15, NOW, NOW + 329.9):
        await shown(at, token, now=now)
    assert "expired" in await refused(at, token, now=NOW + 330)
    assert "expired" in await refused(at, token, now=NOW + 10**9)
    assert "not valid yet" in await refused(tokens(server), token, now=NOW - 21)
    assert "not valid yet" in await refused(at, server.token(now=NOW + 60), now=NOW)


@pytest.mark.parametrize("said", ["tomorrow", True, [1], {"a": 1}, "1900000000"])
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
async def test_a_time_that_is_no_number_is_none(server: AuthorizationServer, claim: str, said: Any) -> None:
    body = {"iss": "i", "sub": "s", "exp": NOW + 10, claim: said}
    with pytest.raises(Unauthenticated):
        claimed(body, "sub", NOW, 0.0)


async def test_a_token_ends_some_day(server: AuthorizationServer) -> None:
    assert "expired" in await refused(tokens(server), server.token(without=("exp",), now=NOW))


def _unsigned(server: AuthorizationServer, header: dict[str, Any], signature: bytes = b"") -> bytes:
    body = server.token(now=NOW).encode().split(b".")[1]
    return b".".join([base64.urlsafe_b64encode(orjson.dumps(header)).rstrip(b"="), body, signature])


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 5, ["RS256"]])
async def test_a_token_is_signed(server: AuthorizationServer, algorithm: Any) -> None:
    assert "not signed in a way" in await refused(tokens(server), _unsigned(server, {"alg": algorithm, "kid": "rsa-1"}))


async def test_a_public_key_is_no_shared_secret(server: AuthorizationServer) -> None:
    at = tokens(server)
    public = private_key("rsa-1").public_key()
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(public_jwk("rsa-1")).encode(),
        public_jwk("rsa-1")["n"].encode(),
    ):
        for algorithm in ("HS256", "HS512"):
            head = {"alg": algorithm, "kid": "rsa-1", "typ": "at+jwt"}
            signed = _unsigned(server, head).rstrip(b".")
            mac = jwt.algorithms.HMACAlgorithm(getattr(hashlib, f"sha{algorithm[2:]}")).sign(signed, secret)
            forged = signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")
            assert "not signed in a way" in await refused(at, forged)


async def test_a_shared_secret_among_the_keys_is_passed_over(server: AuthorizationServer) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode()
    server.answer = {"keys": [{"kty": "oct", "k": secret, "kid": "oct"}, public_jwk("rsa-1")]}
    at = tokens(server)
    forged = jwt.encode({"iss": server.issuer}, b"s" * 32, "HS256", {"kid": "oct"})
    assert "not signed in a way" in await refused(at, forged)
    await shown(at, server.token(key="rsa-1", now=NOW))


async def test_the_algorithm_is_the_keys_own_whatever_the_token_says(server: AuthorizationServer) -> None:
    server.answer = {"keys": [public_jwk("rsa-1", alg="PS256"), public_jwk("ec-1")]}
    at = tokens(server)
    await shown(at, server.token(key="rsa-1", header={"alg": "PS256"}, now=NOW))
    assert "not signed with a key" in await refused(at, server.token(key="rsa-1", header={"alg": "RS256"}, now=NOW))
    forged = server.token(key="rsa-1", header={"kid": "ec-1"}, now=NOW)
    assert "not signed with a key" in await refused(at, forged)


async def test_only_configured_algorithms_are_taken(server: AuthorizationServer) -> None:
    at = tokens(server, {"algorithms": ["ES256"]})
    await shown(at, server.token(key="ec-1", now=NOW))
    assert "not signed in a way" in await refused(at, server.token(key="rsa-1", now=NOW))


async def test_a_key_that_the_issuer_does_not_publish_signs_for_nobody(server: AuthorizationServer) -> None:
    at = tokens(server)
    assert "not signed with a key" in await refused(at, server.token(key="rsa-evil", now=NOW))
    assert "not signed with a key" in await refused(at, server.token(key="rsa-evil", header={"kid": "rsa-1"}, now=NOW))
    good = server.token(now=NOW)
    assert "not signed with a key" in await refused(at, good[:-6] + "AAAAAA")
    head, _, signature = good.split(".")
    other = server.token(sub="others-client", now=NOW).split(".")[1]
    assert "not signed with a key" in await refused(at, f"{head}.{other}.{signature}")


async def test_a_key_that_the_token_brings_along_is_not_used(server: AuthorizationServer) -> None:
    at = tokens(server)
    for header in (
        {"jwk": public_jwk("rsa-evil")},
        {"jku": f"{server.issuer}/evil"},
        {"x5u": f"{server.issuer}/evil"},
        {"kid": "../../dev/null"},
        {"kid": f"{server.issuer}/evil"},
    ):
        assert "not signed with a key" in await refused(at, server.token(key="rsa-evil", header=header, now=NOW))
    assert server.asked["/evil"] == 0


async def test_a_token_that_wants_more_than_is_understood_is_refused(server: AuthorizationServer) -> None:
    forged = server.token(header={"crit": ["exp2"], "exp2": 1}, now=NOW)
    assert "not signed with a key" in await refused(tokens(server), forged)


async def test_without_a_name_a_key_has_to_be_the_only_one(server: AuthorizationServer) -> None:
    at = tokens(server)
    await shown(at, server.token(key="ec-1", header={"kid": None}, now=NOW))
    server.keys = ("rsa-1", "rsa-2")
    token = server.token(key="rsa-1", header={"kid": None}, now=NOW)
    assert "not signed with a key" in await refused(tokens(server), token)


async def test_two_keys_of_one_name_are_both_tried(server: AuthorizationServer) -> None:
    server.answer = {"keys": [public_jwk("rsa-1", kid="k"), public_jwk("rsa-2", kid="k")]}
    at = tokens(server)
    for key in ("rsa-1", "rsa-2"):
        await shown(at, server.token(key=key, header={"kid": "k"}, now=NOW))


async def test_short_keys_and_keys_for_other_uses_check_nothing(server: AuthorizationServer) -> None:
    server.answer = {"keys": [public_jwk("short"), public_jwk("rsa-2", use="enc"), public_jwk("rsa-1")]}
    at = tokens(server)
    for key in ("short", "rsa-2"):
        assert "not signed with a key" in await refused(at, server.token(key=key, now=NOW))
    await shown(at, server.token(key="rsa-1", now=NOW))


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "secevent+jwt"])
async def test_tokens_made_for_something_else_are_none(server: AuthorizationServer, typ: str) -> None:
    assert "not an access token" in await refused(tokens(server), server.token(header={"typ": typ}, now=NOW))


@pytest.mark.parametrize(
    "token",
    [b"..", b"a.b.c", b"e30.e30.", b"e30.e30.e30.e30", b"\xff.\xff.\xff", b"W10.W10.W10", b"a" * 20000 + b".b.c"],
)
async def test_what_is_no_token_is_refused(server: AuthorizationServer, token: bytes) -> None:
    await refused(tokens(server), token)


@given(
    token=st.binary(max_size=60).map(lambda raw: raw + b".")
    | st.text(alphabet="abcE30=._-", max_size=40).map(str.encode)
)
async def test_no_bytes_are_a_fault(token: bytes) -> None:
    await refused(tokens(AuthorizationServer()), token)


@pytest.mark.parametrize(
    "said", [{"scope": "mcp:tools a b"}, {"scope": ["a", "mcp:tools"]}, {"scp": "mcp:tools"}, {"scp": ["mcp:tools"]}]
)
async def test_scopes_are_read_as_servers_write_them(server: AuthorizationServer, said: dict[str, Any]) -> None:
    at = tokens(server, scopes=["mcp:tools"])
    await shown(at, server.token(now=NOW, **{"scope": "", **said}))


async def test_a_token_without_a_needed_scope_is_good_for_nothing_else(server: AuthorizationServer) -> None:
    at = tokens(server, scopes=["mcp:tools", "mcp:more"])
    for _ in range(2):
        with pytest.raises(ScopeMissing, match="mcp:more"):
            await shown(at, server.token(scope="mcp:tools mcp:moreover", now=NOW))


async def test_a_token_is_checked_once_and_again_when_it_has_expired(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    original = Tokens._check

    async def counted(self: Tokens, token: bytes, now: float) -> Any:
        nonlocal checks
        checks += 1
        return await original(self, token, now)

    monkeypatch.setattr(Tokens, "_check", counted)
    at, token = tokens(server), server.token(now=NOW)
    for second in range(5):
        await shown(at, token, now=NOW + second)
    assert checks == 1
    await shown(at, token, now=NOW + 301)
    assert checks == 2, "within the leeway, and not remembered any more"
    await refused(at, token, now=NOW + 331)


async def test_what_was_checked_is_bounded_and_holds_no_token(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.oauth.tokens._MOST", 3)
    at = tokens(server)
    issued = [server.token(key="ec-1", jti=str(number), now=NOW) for number in range(5)]
    for token in issued:
        await shown(at, token)
    assert len(at._checked) == 3
    assert not any(token.split(".")[2] in repr(at._checked) for token in issued)


async def test_two_issuers_mean_different_agents_by_the_same_subject(server: AuthorizationServer) -> None:
    async with serving(keys=("rsa-2",)) as other:
        written = settings(
            agents=[
                {"name": "support-bot", "tenant": "acme", "subject": "bots-client", "issuer": server.issuer},
                {"name": "other-bot", "tenant": "acme", "subject": "bots-client", "issuer": other.issuer},
            ],
            oauth={
                "resource": "https://gw.test",
                "issuers": [{"issuer": e.issuer, "jwks_url": f"{e.issuer}/jwks"} for e in (server, other)],
            },
        )
        assert written.oauth is not None
        at = Tokens(written.oauth, Directory(written.agents, written.oauth.issuers))
        assert (await shown(at, server.token(now=NOW))).name == "support-bot"
        assert (await shown(at, other.token(now=NOW))).name == "other-bot"
        forged = other.token(iss=server.issuer, now=NOW)
        assert "not signed with a key" in await refused(at, forged), "one issuer's keys are not the other's"
