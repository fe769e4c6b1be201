"""`GET /approvals/{id}` of the data plane: an agent asks after its own held call, and may wait for news of it."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson

from adapters.base import Headers
from gateway.approval_view import shown_to_agent
from gateway.holding import Holds
from gateway.identity import Agent, Unauthenticated
from gateway.lifeline import ClientGone, Lifeline
from gateway.oauth.tokens import ScopeMissing
from gateway.pipeline import Pipeline
from gateway.problems import problem_for
from policies.approval_store import StoreUnavailable
from policies.approvals import Approval, State

PATH: Final = "/approvals/"
LONGEST: Final = 60.0
"""Seconds for which news are waited for at most, whatever is asked for."""

_ID: Final = re.compile(r"apr_[0-9A-HJKMNP-TV-Z]{26}")
_KEYS: Final = (b"authorization", b"x-api-key")
_WAITING: Final = (State.PENDING, State.CONSUMED)

_LATER: Final[Headers] = [(b"retry-after", b"2")]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def ask_after(pipeline: Pipeline, scope: MutableMapping[str, Any], send: Send) -> None:
    """Answers with the approval as its agent may see it; 404 for one of anybody else. Never raises."""
    lifeline = Lifeline(scope)
    try:
        status, body, headers = await _asked(pipeline, scope)
    except asyncio.CancelledError:
        gone = isinstance(lifeline.caught(), ClientGone)
        lifeline.release()
        if gone:
            return
        status, body, headers = 503, _problem("no_healthy_target", "The gateway is being stopped. Ask again."), _LATER
    lifeline.release()
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _asked(pipeline: Pipeline, scope: MutableMapping[str, Any]) -> tuple[int, bytes, Headers]:
    """The status, the body and what stands in the head for it."""
    login = pipeline.assembly.login
    try:
        lines = [line for line in scope["headers"] if line[0] in _KEYS]
        keys = dict(lines)
        if len(keys) < len(lines):
            raise Unauthenticated("There are two keys. Send one, as `Authorization: Bearer KEY`.")
        agent = await login.identify(keys.get(b"authorization"), keys.get(b"x-api-key"), scope["path"], time.time())
        if scope["method"] not in ("GET", "HEAD"):
            return 405, _problem("malformed_call", "Ask with GET."), [(b"allow", b"GET, HEAD")]
        name = scope["path"].removeprefix(PATH)
        wait = _wait(scope["query_string"])
        found = await _found(pipeline.holds, agent, name, wait) if _ID.fullmatch(name) else None
    except (Unauthenticated, ScopeMissing) as error:
        problem = problem_for(error)
        challenge = login.challenge(scope["path"], error)
        return problem.status, _problem(problem.code, str(error)), [(b"www-authenticate", challenge)]
    except ValueError as error:
        return 400, _problem("malformed_call", str(error)), []
    except StoreUnavailable:
        return 503, _problem("ledger_unavailable", "Approvals cannot be looked up now. Ask again later."), _LATER
    if found is None:
        return 404, _problem("no_route", "No held call of yours has this id, or it was long ago."), []
    return 200, orjson.dumps(shown_to_agent(found)), []


async def _found(holds: Holds, agent: Agent, name: str, wait: float) -> Approval | None:
    """Raises StoreUnavailable."""
    until = time.monotonic() + wait
    with holds.waits(name) as waiter:
        while True:
            found = await holds.store.get(name)
            if found is None or (found.call.tenant, found.call.agent) != (agent.tenant, agent.name):
                return None
            left = until - time.monotonic()
            if found.state not in _WAITING or left <= 0 or holds.stopping or not await waiter.woken(left):
                return found


def _wait(query: bytes) -> float:
    """Raises ValueError."""
    asked = urllib.parse.parse_qs(query.decode("latin-1"), keep_blank_values=True)
    if not asked:
        return 0.0
    if set(asked) != {"wait"} or len(asked["wait"]) != 1:
        raise ValueError("There is one parameter, `wait`, a number of seconds.")
    text = asked["wait"][0]
    if not (text.isascii() and text.replace(".", "", 1).isdecimal() and len(text) < 10):
        raise ValueError("`wait` is a number of seconds.")
    return min(float(text), LONGEST)


def _problem(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})
