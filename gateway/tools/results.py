"""What a plain HTTP tool has answered, put before the policy before its agent sees it.

    {"status": 200, "content_type": "application/json", "body": ...}

`body` is the JSON that came, or the text, or of other bytes their hash and length.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Final

import orjson

from adapters.base import Headers, Refusal
from adapters.body import leads, parse, places, splice
from adapters.errors import MalformedCall
from adapters.http import HttpCall, is_json
from gateway.exchange import Exchange
from gateway.tools.desk import Desk
from policies.decision import Effect
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.obligations import Edit

log = logging.getLogger("weighbridge.tools")

LARGEST: Final = 1024 * 1024
"""Bytes of an answer that a policy can be asked about."""
STARS: Final = b'"***"'
_LONGEST_NAMED: Final = 300
"""Characters of pointers in a record."""
NOT_THERE: Final = "The policy lets it pass only without some values, and there is nothing where it looks for them"
MISSED: Final = "the result was withheld: nothing that could be redacted is at {}"
"""What agents are told of a redaction that leads to nothing, and what the record says of it."""

Answer = tuple[int, Headers, bytes]


async def returned(
    x: Exchange, call: HttpCall, status: int, headers: Headers, kind: bytes, body: bytes, desk: Desk
) -> Answer:
    """The answer as the agent may have it: a refusal in place of one that is withheld, since the call has been made."""
    if len(body) > LARGEST:
        return _withheld(x, f"It is longer than the {LARGEST} bytes that a policy is asked about")
    text = _told(body, kind)
    if text is None:
        return _withheld(x, "It is no JSON that can be read for certain")
    about = orjson.dumps({"status": status, "content_type": kind.decode("latin-1")})
    try:
        decision = await desk.inquiries.judge(x, call, about[:-1] + b',"body":' + text + b"}")
    except (Undecided, InputRefused, EngineUnavailable) as error:
        log.error("call %s: its result is withheld: %s", x.id, error.internal or error)
        return _withheld(x, "The policy could not be asked about it", "policy_unavailable")
    if decision.effect is Effect.DENY:
        return _withheld(x, decision.explanation or "The policy does not let it pass")
    if decision.effect is Effect.NEEDS_APPROVAL:
        return _withheld(x, "The policy wants people's approval of it, and results cannot wait for that")
    obligations = decision.obligations
    if not obligations:
        return status, headers, body
    paths = [edit.path for edit in obligations.redact]
    if obligations.facts().keys() - {"redact"} or any(path[:2] != ("result", "body") for path in paths):
        log.error("call %s: its result is withheld: only `redact` below /result/body can be demanded of it", x.id)
        return _withheld(x, "The policy lets it pass only with obligations that cannot be fulfilled")
    if not body or not is_json(kind.decode("latin-1")) or any(len(path) < 3 for path in paths):
        x.detail = x.detail or MISSED.format(pointers(obligations.redact))
        return _withheld(x, "The policy lets only a part of it pass, and it has none that could be left out")
    missed = [edit for edit in obligations.redact if not leads(body, edit.path[2:])]
    if missed:
        x.detail = x.detail or MISSED.format(pointers(missed))
        return _withheld(x, NOT_THERE)
    for path in paths:
        body = splice(body, places(body, path[2:]), STARS)
    x.result = "redacted"
    return status, headers, body


def pointers(edits: Iterable[Edit]) -> str:
    """As the policy wrote them, for a record."""
    return " and ".join(edit.pointer for edit in edits)[:_LONGEST_NAMED]


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


def _withheld(x: Exchange, why: str, code: str = "policy_denied") -> Answer:
    x.result, x.code = "withheld", code
    x.detail = x.detail or f"the result was withheld: {why}"
    said = (
        f"The call was made, and its result is withheld. {why.removesuffix('.')}. Do not repeat the call to see it; "
        "tell your user."
    )
    return 403, *x.adapter.refusal(Refusal(403, code, said, x.id))
