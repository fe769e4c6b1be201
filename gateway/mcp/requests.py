"""What an MCP server asks of its client, on the way there: each question is a call of its own, decided like any other.

A server that asks a model something through its client, or its user, acts by the agent's means. What is refused never
gets to the client: the server is answered in its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from adapters.base import AgentCall, Refusal
from adapters.errors import MalformedCall
from adapters.mcp import messages
from adapters.mcp.messages import McpCall
from gateway.exchange import Exchange
from gateway.reply import Framed, Reply

if TYPE_CHECKING:
    from gateway.tools.desk import Desk

log = logging.getLogger("weighbridge.mcp")

MOST: Final = 32
"""Questions of one stream that are decided on at the same time; what is asked beyond is refused."""
IN_ORDER: Final = 0.05
"""Seconds for which what follows a question waits for it: it overtakes only what people decide on."""


class Aside(Reply):
    """Stands in for the answer of a call that is not answered here: signs of life go where `alive` says."""

    __slots__ = ("_alive",)

    def __init__(self, x: Exchange, alive: Callable[[bytes], Awaitable[None]] | None) -> None:
        super().__init__(x, _nowhere)
        self._alive = alive

    async def keep_open(self, sign: bytes, framed: Framed | None = None) -> None:
        if self._alive is not None:
            await self._alive(sign)


async def _nowhere(_: MutableMapping[str, Any]) -> None:
    """Nobody waits for it."""


class Questions:
    """Those of one stream. `passed` takes what goes to the client, `answered` what goes back to the server."""

    def __init__(
        self,
        x: Exchange,
        call: McpCall,
        desk: Desk,
        passed: Callable[[bytes], Awaitable[None]],
        answered: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._x = x
        self._call = call
        self._desk = desk
        self._passed = passed
        self._answered = answered
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(
        self, message: Mapping[str, Any], data: bytes, framed: Callable[[bytes], bytes], refused: RefusalFor
    ) -> None:
        """Decides on one, and passes it on as `framed` frames it, or answers it. Returns once that is done, or takes
        longer than what follows it may wait."""
        if len(self._under_way) >= MOST:
            await self._no(message, "The gateway decides on no more questions of this server at the same time.")
            return
        task = asyncio.get_running_loop().create_task(self._decided(message, data, framed, refused))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.wait([task], timeout=IN_ORDER)

    async def end(self) -> None:
        """No answer to what is still being decided on is of use to anybody."""
        left = list(self._under_way)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _decided(
        self, message: Mapping[str, Any], data: bytes, framed: Callable[[bytes], bytes], refused: RefusalFor
    ) -> None:
        async def carried(call: AgentCall) -> None:
            assert isinstance(call, McpCall), "what is asked stays a message"
            await self._passed(framed(messages.onward(call)))

        try:
            call = messages.question(self._x.call.target if self._x.call else "", message, data, self._call)
            await self._desk.within(self._x, call, carried, self._passed)
        except Exception as error:
            refusal = refused(error, self._x.id)
            await self._no(message, refusal.message, refusal)

    async def _no(self, message: Mapping[str, Any], why: str, refusal: Refusal | None = None) -> None:
        error = {"code": refusal.status if refusal is not None else 429, "message": why}
        if refusal is not None:
            error["data"] = {"code": refusal.code, **refusal.details}
        identity = messages.identity(message["id"]) or b"null"
        answer = b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (identity, orjson.dumps(error))
        try:
            await self._answered(answer)
        except Exception as failure:
            log.warning("the server of call %s was not told of a refusal: %s", self._x.id, type(failure).__name__)


RefusalFor = Callable[[BaseException, str], Refusal]


async def granted(x: Exchange, call: McpCall, result: Mapping[str, Any], desk: Desk) -> None:
    """Decides on all that a modern server asks for in a result that wants input. Raises as `Desk.within` does for the
    first that is refused: then its client gets none of them."""

    async def carried(_: AgentCall) -> None:
        """It is passed on with the result that it stands in."""

    asked = result.get("inputRequests")
    if asked is None:
        return
    if not isinstance(asked, dict):
        raise MalformedCall("The server asks for input in a way that cannot be read.")
    for each in asked.values():
        method = each.get("method") if isinstance(each, dict) else None
        if not isinstance(method, str) or messages.passes_for(method, messages.QUESTIONS):
            raise MalformedCall("The server asks for input in a way that cannot be read.")
        if method in messages.QUESTIONS:
            await desk.within(x, messages.question(call.target, each, orjson.dumps(each), call), carried)
