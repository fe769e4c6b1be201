"""An authorization server as far as tests need one: metadata, keys, and tokens by client credentials or by a code.

`AuthorizationServer` signs; `serving` puts it on a port, where it counts what it is asked and misbehaves as it is told.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms

from tests.support.door import door

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_MADE: dict[str, PrivateKey] = {}


def private_key(name: str) -> PrivateKey:
    """A key for tests: the same for the same name, which begins with what kind it is: `rsa`, `ec`, `ed`, `short`."""
    if name not in _MADE:
        if name.startswith("ec"):
            _MADE[name] = ec.generate_private_key(ec.SECP256R1())
        elif name.startswith("ed"):
            _MADE[name] = ed25519.Ed25519PrivateKey.generate()
        else:
            _MADE[name] = rsa.generate_private_key(65537, 1024 if name.startswith("short") else 2048)
    return _MADE[name]


def algorithm_of(name: str) -> str:
    return {"ec": "ES256", "ed": "EdDSA"}.get(name[:2], "RS256")


def public_jwk(name: str, **said: Any) -> dict[str, Any]:
    """The public half as a member of a JWK set, `kid` being the name."""
    public = private_key(name).public_key()
    if isinstance(public, rsa.RSAPublicKey):
        found = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        found = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        found = OKPAlgorithm.to_jwk(public, as_dict=True)
    found.pop("key_ops", None)
    joined = {**found, "kid": name, "use": "sig", **said}
    return {key: value for key, value in joined.items() if value is not None}


class AuthorizationServer:
    """`keys` are the names of those that it publishes; it signs with the last. `issuer` is where it serves."""

    def __init__(self, issuer: str = "https://login.test", *, keys: tuple[str, ...] = ("rsa-1",)) -> None:
        self.issuer = issuer
        self.keys = keys
        self.clients = {"bots-client": "bots:secret/ä"}
        self.asked: Counter[str] = Counter()
        """Requests by their path."""
        self.forms: list[dict[str, str]] = []
        """What was sent to /token."""
        self.status = 200
        """Of /jwks and /token."""
        self.answer: Any = None
        """What these answer in place of the truth."""
        self.lifetime: int | None = 300
        self.scopes = "mcp:tools"
        """Granted where a client asks for none."""
        self.subject: str | None = None
        """Of tokens got by a code; others are the client's own."""
        self.open = asyncio.Event()
        """While it is not set, /jwks and /token keep whoever asks waiting."""
        self.open.set()
        self.knocked = asyncio.Event()
        self._codes: dict[str, dict[str, str]] = {}

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [public_jwk(name) for name in self.keys]}

    def token(
        self,
        *,
        key: str | None = None,
        header: dict[str, Any] | None = None,
        without: tuple[str, ...] = (),
        now: float | None = None,
        **claims: Any,
    ) -> str:
        """A good token for https://gw.test, but for what is said otherwise."""
        name = key or self.keys[-1]
        now = time.time() if now is None else now
        body = {
            "iss": self.issuer,
            "sub": "bots-client",
            "aud": "https://gw.test",
            "iat": int(now),
            "exp": int(now) + 300,
            "scope": self.scopes,
            **claims,
        }
        for claim in without:
            del body[claim]
        joined = {"kid": name, "typ": "at+jwt", **(header or {})}
        sent = {key: value for key, value in {"alg": algorithm_of(name), **joined}.items() if value is not None}
        # By hand: libraries have good reasons not to write what tests want to be refused.
        signed = b".".join(base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (sent, body))
        signature = get_default_algorithms()[sent["alg"]].sign(signed, private_key(name))
        return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        self.asked[path] += 1
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status, headers = 404, list[tuple[bytes, bytes]]()
        answer: Any = {"error": "not_found"}
        if path in ("/jwks", "/token"):
            self.knocked.set()
            await self.open.wait()
        if path in ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"):
            status, answer = 200, self._metadata()
        elif path == "/jwks":
            status, answer = self.status, self.jwks if self.answer is None else self.answer
        elif path == "/token":
            form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
            self.forms.append(form)
            status, answer = self._granted(scope, form)
        elif path == "/authorize":
            asked = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
            code = secrets.token_urlsafe(16)
            self._codes[code] = asked
            back = urlencode({"code": code, "state": asked["state"], "iss": self.issuer})
            status, headers = 302, [(b"location", f"{asked['redirect_uri']}?{back}".encode())]
        elif path == "/register":
            registered = orjson.loads(body)
            answer = {**registered, "client_id": "registered", "token_endpoint_auth_method": "none"}
            status = 201
        content = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *headers]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": content})

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "registration_endpoint": f"{self.issuer}/register",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def _granted(self, scope: MutableMapping[str, Any], form: dict[str, str]) -> tuple[int, Any]:
        if self.answer is not None or self.status != 200:
            return self.status, self.answer if self.answer is not None else {"error": "server_error"}
        client = self._client(scope, form)
        subject = client
        if form["grant_type"] == "authorization_code":
            asked = self._codes.pop(form["code"])
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"], "PKCE"
            assert asked["resource"] == form["resource"], "one resource throughout"
            subject, form = self.subject or "nobody", {**asked, **form}
        elif client is None:
            return 401, {"error": "invalid_client", "error_description": f"not {form.get('client_secret')}"}
        scopes = form.get("scope", self.scopes)
        token = self.token(
            sub=subject, client_id=client or form["client_id"], aud=form.get("resource", "nowhere"), scope=scopes,
            exp=int(time.time()) + (self.lifetime or 300), jti=secrets.token_hex(8),
        )  # fmt: skip
        answer: dict[str, Any] = {"access_token": token, "token_type": "Bearer", "scope": scopes}
        if self.lifetime is not None:
            answer["expires_in"] = self.lifetime
        return 200, answer

    def _client(self, scope: MutableMapping[str, Any], form: dict[str, str]) -> str | None:
        """Who asks, where the secret is right."""
        line = dict(scope["headers"]).get(b"authorization", b"")
        name, secret = form.get("client_id", ""), form.get("client_secret", "")
        if line.startswith(b"Basic "):
            name, secret = map(unquote, base64.b64decode(line[6:]).decode().split(":"))
        return name if secret and self.clients.get(name) == secret else None


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[AuthorizationServer]:
    """One on a port of its own, which is its issuer, until the block ends."""
    server = AuthorizationServer(**options)
    async with door(server) as port:
        server.issuer = f"http://127.0.0.1:{port}"
        try:
            yield server
        finally:
            server.open.set()
