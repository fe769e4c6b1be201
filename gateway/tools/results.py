"""What a plain HTTP tool has answered, put before the policy before its agent sees it.

    {"status": 200, "content_type": "application/json", "body": ...}

`body` is the JSON that came, or the text, or of other bytes their hash and length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from typing import Final

import orjson

from adapters.body import parse, places, splice
from adapters.errors import MalformedCall
from adapters.http import HttpCall, is_json
from gateway.exchange import Exchange
from gateway.tools.desk import Desk
from policies.decision import Decision, Effect
from policies.errors import Denied

log = logging.getLogger("weighbridge.tools")

LARGEST: Final = 1024 * 1024
"""Bytes of an answer that a policy can be asked about."""
STARS: Final = b'"***"'


async def returned(x: Exchange, call: HttpCall, status: int, kind: bytes, body: bytes, desk: Desk) -> bytes:
    """The body as the agent may have it. Raises Denied where it may not, and as `Desk.judge` does."""
    assert x.decision is not None, "what is answered was decided on"
    if len(body) > LARGEST:
        raise _withheld(x, x.decision, f"It is longer than the {LARGEST} bytes that a policy is asked about")
    text = _told(body, kind)
    if text is None:
        raise _withheld(x, x.decision, "It is no JSON that can be read for certain")
    about = orjson.dumps({"status": status, "content_type": kind.decode("latin-1")})
    decision = await desk.judge(x, call, about[:-1] + b',"body":' + text + b"}")
    if decision.effect is Effect.DENY:
        raise _withheld(x, decision, decision.explanation or "The policy does not let it pass")
    if decision.effect is Effect.NEEDS_APPROVAL:
        raise _withheld(x, decision, "The policy wants people's approval of it, and results cannot wait for that")
    obligations = decision.obligations
    if not obligations:
        return body
    paths = [edit.path for edit in obligations.redact]
    if obligations.facts().keys() - {"redact"} or any(path[:2] != ("result", "body") for path in paths):
        log.error("call %s: its result is withheld: only `redact` below /result/body can be demanded of it", x.id)
        raise _withheld(x, decision, "The policy lets it pass only with obligations that cannot be fulfilled")
    if not is_json(kind.decode("latin-1")) or any(len(path) < 3 for path in paths):
        raise _withheld(x, decision, "The policy lets only a part of it pass, and it has none that could be left out")
    for path in paths:
        body = splice(body, places(body, path[2:]), STARS)
    x.result = "redacted"
    return body


def _told(body: bytes, kind: bytes) -> bytes | None:
    """A body as JSON text; None for one that says that it is JSON and is not."""
    if body and is_json(kind.decode("latin-1")):
        try:
            return body if parse(b'{"body":%s}' % body).keys() == {"body"} else None
        except MalformedCall:
            return None
    try:
        return orjson.dumps(body.decode())
    except UnicodeDecodeError:
        return orjson.dumps({"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)})


def _withheld(x: Exchange, decision: Decision, why: str) -> Denied:
    x.result = "withheld"
    x.detail = x.detail or f"the result was withheld: {why}"
    said = (
        f"The call was made, and its result is withheld. {why.removesuffix('.')}. Do not repeat the call to see it; "
        "tell your user."
    )
    return Denied(dataclasses.replace(decision, effect=Effect.DENY, explanation=said))
