"""An OPA server that misbehaves on request: what it answers to each kind of question is a script of the test's own.

`async with LyingOpa() as opa:` answers as a sound OPA with a policy that allows everything; `opa.decides(script)`,
`opa.names_problems(script)` and `opa.lists(script)` replace one answer. Scripts are as in `tests.support.misbehaving`.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import orjson

from policies.opa import DECISION, POLICIES, PROBLEMS
from tests.support.misbehaving import HEAD, Misbehaving, Script, Wire

ALLOW: Final[dict[str, Any]] = {"result": {"decision": "ALLOW"}}
_PACKAGE: Final = {"package": {"path": [{"value": "data"}, {"value": "weighbridge"}]}}
LISTING: Final[dict[str, Any]] = {"result": [{"id": "p.rego", "raw": "package weighbridge", "ast": _PACKAGE}]}


def of_bundle(answer: dict[str, Any], **revisions: str) -> dict[str, Any]:
    """The answer as it comes from bundles with these revisions."""
    bundles = {name: {"revision": revision} for name, revision in revisions.items()}
    return {**answer, "provenance": {"version": "1.22.2", "bundles": bundles}}


def reply(answer: Any, status: bytes = b"200 OK") -> bytes:
    """A whole HTTP reply: `answer` as JSON, or as it is where it is bytes."""
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def answers(answer: Any, status: bytes = b"200 OK") -> Script:
    """A script that takes the whole question and gives this answer."""

    async def script(wire: Wire) -> None:
        await wire.body()
        await wire.send(reply(answer, status))

    return script


class LyingOpa(Misbehaving):
    """`shown` holds what came as `authorization` with any question."""

    def __init__(self, tls: ssl.SSLContext | None = None, at: Path | None = None, base: str = "") -> None:
        super().__init__(tls, at)
        self.shown: list[str | None] = []
        self._base = base
        self.decides(answers(ALLOW))
        self.names_problems(answers({}))
        self.lists(answers(LISTING))

    @property
    def url(self) -> str:
        if self._at is not None:
            return f"unix://{self._at}"
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{self._base}"

    def decides(self, script: Script) -> None:
        self.on(self._base + DECISION, self._noting(script))

    def names_problems(self, script: Script) -> None:
        self.on(self._base + PROBLEMS, self._noting(script))

    def lists(self, script: Script) -> None:
        self.on(self._base + POLICIES, self._noting(script))

    def questions(self) -> int:
        """How many times a decision was asked for."""
        return self.requests.count(self._base + DECISION)

    def _noting(self, script: Script) -> Script:
        async def noted(wire: Wire) -> None:
            self.shown.append(wire.headers.get("authorization"))
            await script(wire)

        return noted


async def breaks_off(wire: Wire) -> None:
    """Half an answer, and the end of the connection."""
    await wire.body()
    await wire.send(HEAD + b'content-length: 100\r\n\r\n{"result":{"decision":"ALLOW"}')
    wire.close()
