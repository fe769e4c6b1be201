"""What the gateway itself asks an MCP server: which tools it has, in whichever era it speaks, in a session of its own.

    modern   tools/list, page by page
    legacy   initialize, notifications/initialized, tools/list page by page, DELETE

The server is nobody's friend: pages, bytes and time are bounded, and a list that does not end is none.
Sources: MCP 2025-11-25, basic/lifecycle and server/utilities/pagination; 2026-07-28, basic/transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson

from adapters.base import Headers
from adapters.mcp import lists
from adapters.mcp.messages import LEGACY, MODERN, Era
from adapters.sse import Framing, events
from gateway.carrier import CarrierError
from gateway.mcp.upstream import Answer, Upstream
from gateway.problems import TargetFailed

MOST_PAGES: Final = 100
MOST_TOOLS: Final = 5000
WITHIN: Final = 30.0
"""Seconds for all of it."""

_METHOD: Final = "tools/list"
_CLIENT: Final = {"name": "weighbridge", "version": "1"}
_ACCEPTED: Final[Headers] = [
    (b"accept", b"application/json, text/event-stream"),
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
]
_NO_SUCH_METHOD: Final = -32601

Items = list[Mapping[str, Any]]


class Unlisted(Exception):
    """The server does not say which tools it has. The text says why, for the operator."""


async def offered(upstream: Upstream, era: Era, largest: int) -> tuple[Items, Era]:
    """All tools as the server lists them, in an era that it speaks: `era` is tried first.

    `largest` is in bytes, of all pages together. What was started for the question ends with it. Raises Unlisted.
    """
    other: Era = "modern" if era == "legacy" else "legacy"
    why = ""
    try:
        async with asyncio.timeout(WITHIN):
            for each in (era, other):
                try:
                    return await _WAYS[each](_Asker(upstream, largest)), each
                except Unlisted as error:
                    why = why or str(error)
    except TimeoutError:
        why = f"it has not said all in {WITHIN:.0f} s"
    except CarrierError as error:
        why = f"it cannot be reached ({type(error).__name__})"
    except TargetFailed as error:
        raise Unlisted(str(error)) from error
    finally:
        upstream.dismiss("")
    raise Unlisted(why)


class _Asker:
    """Asks one question after the other."""

    def __init__(self, upstream: Upstream, largest: int) -> None:
        self._upstream = upstream
        self._left = largest
        self._number = 0

    async def ask(self, method: str, params: Mapping[str, Any], headers: Headers) -> tuple[bytes, Headers]:
        """The answer to a request, and its headers. Raises Unlisted, CarrierError."""
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        answer = await self._upstream.send(b"POST", [*_ACCEPTED, *headers], orjson.dumps(message))
        try:
            return await self._found(answer), answer.headers
        finally:
            answer.close()

    async def tell(self, verb: bytes, message: Mapping[str, Any] | None, headers: Headers) -> None:
        """Says what is not answered. Raises CarrierError."""
        body = orjson.dumps(message) if message is not None else b""
        answer = await self._upstream.send(verb, [*_ACCEPTED, *headers], body)
        answer.close()

    async def _found(self, answer: Answer) -> bytes:
        kind = _header(answer.headers, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"text/event-stream":
            pieces = []
            while piece := await self._piece(answer):
                pieces.append(piece)
            return b"".join(pieces)
        framing = Framing()
        while piece := await self._piece(answer):
            try:
                run = framing.whole(piece)
            except ValueError as error:
                raise Unlisted(str(error)) from None
            for _, _, data in events(run):
                if _answers(data, self._number):
                    return data
        raise Unlisted("its stream ends without the answer")

    async def _piece(self, answer: Answer) -> bytes:
        piece = await answer.read()
        self._left -= len(piece)
        if self._left < 0:
            raise Unlisted("its list is too long")
        return piece


async def _modern(asker: _Asker) -> Items:
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": _CLIENT,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers: Headers = [(b"mcp-protocol-version", MODERN.encode()), (b"mcp-method", _METHOD.encode())]
    return await _pages(asker, {"_meta": meta}, headers, none_without=False)


async def _legacy(asker: _Asker) -> Items:
    params = {"protocolVersion": LEGACY[-1], "capabilities": {}, "clientInfo": _CLIENT}
    told, came = await asker.ask("initialize", params, [])
    result = _result(told)
    headers: Headers = []
    if session := _header(came, b"mcp-session-id"):
        headers.append((b"mcp-session-id", session))
    if isinstance(version := result.get("protocolVersion"), str) and version in LEGACY:
        headers.append((b"mcp-protocol-version", version.encode()))
    try:
        await asker.tell(b"POST", {"jsonrpc": "2.0", "method": "notifications/initialized"}, headers)
        return await _pages(asker, {}, headers, none_without=True)
    finally:
        if session:
            await asker.tell(b"DELETE", None, headers)


async def _pages(asker: _Asker, params: Mapping[str, Any], headers: Headers, *, none_without: bool) -> Items:
    found: Items = []
    seen: set[str] = set()
    for _ in range(MOST_PAGES):
        told, _ = await asker.ask(_METHOD, params, headers)
        try:
            page = lists.read(_METHOD, told)
        except lists.UnreadableList as error:
            raise Unlisted(str(error)) from None
        if page is None:
            if none_without and not found and _code(told) == _NO_SUCH_METHOD:
                return []
            raise Unlisted("it answers with an error")
        found += page.items
        if len(found) > MOST_TOOLS:
            raise Unlisted(f"it has more than {MOST_TOOLS} tools")
        cursor = page.cursor
        if cursor is None:
            return found
        if not isinstance(cursor, str) or cursor in seen:
            raise Unlisted("its pages lead in circles")
        seen.add(cursor)
        params = {**params, "cursor": cursor}
    raise Unlisted(f"its list has more than {MOST_PAGES} pages")


_WAYS: Final[Mapping[Era, Callable[[_Asker], Awaitable[Items]]]] = {"modern": _modern, "legacy": _legacy}


def _result(told: bytes) -> Mapping[str, Any]:
    message = _parsed(told)
    result = message.get("result") if message is not None else None
    if not isinstance(result, dict):
        raise Unlisted("it begins no session")
    return result


def _answers(data: bytes, number: int) -> bool:
    message = _parsed(data)
    return message is not None and "method" not in message and message.get("id") == number


def _code(told: bytes) -> object:
    error = (_parsed(told) or {}).get("error")
    return error.get("code") if isinstance(error, dict) else None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None


def _header(headers: Headers, name: bytes) -> bytes:
    return next((value for each, value in headers if each == name), b"")
