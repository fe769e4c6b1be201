"""`GET /approvals/{id}` of the data plane: an agent asks after its own held call, and may wait for news of it."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson

from adapters.base import Headers
from gateway.approval_view import shown_to_agent
from gateway.identity import Agent, Unauthenticated
from gateway.pipeline import Pipeline
from policies.approval_store import StoreUnavailable
from policies.approvals import Approval, State

PATH: Final = "/approvals/"
LONGEST: Final = 60.0
"""Seconds for which news are waited for at most, whatever is asked for."""

_WAITING: Final = (State.PENDING, State.CONSUMED)

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def ask_after(pipeline: Pipeline, scope: MutableMapping[str, Any], send: Send) -> None:
    """Answers with the approval as its agent may see it; 404 for one of anybody else. Never raises."""
    headers = dict(scope["headers"])
    try:
        agent = pipeline.assembly.directory.identify(headers.get(b"authorization"), headers.get(b"x-api-key"))
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, _problem("malformed_call", "Ask with GET."), [(b"allow", b"GET")])
            return
        wait = _wait(scope["query_string"])
        found = await _found(pipeline, agent, scope["path"].removeprefix(PATH), wait)
    except Unauthenticated as error:
        body = _problem("unauthenticated", str(error))
        await _answer(send, 401, body, [(b"www-authenticate", b"Bearer")])
        return
    except ValueError as error:
        await _answer(send, 400, _problem("malformed_call", str(error)))
        return
    except StoreUnavailable:
        body = _problem("ledger_unavailable", "Approvals cannot be looked up now. Ask again later.")
        await _answer(send, 503, body, [(b"retry-after", b"2")])
        return
    if found is None:
        await _answer(send, 404, _problem("no_route", "No held call of yours has this id, or it was long ago."))
        return
    await _answer(send, 200, orjson.dumps(shown_to_agent(found)))


async def _found(pipeline: Pipeline, agent: Agent, name: str, wait: float) -> Approval | None:
    holds, until = pipeline.holds, time.monotonic() + wait
    with holds.waits(name) as waiter:
        while True:
            found = await holds.store.get(name)
            if found is None or (found.call.tenant, found.call.agent) != (agent.tenant, agent.name):
                return None
            left = until - time.monotonic()
            if found.state not in _WAITING or left <= 0 or not await waiter.woken(left):
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


async def _answer(send: Send, status: int, body: bytes, more: Headers | None = None) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
