"""One plain HTTP tool: its requests become calls, and its answers pass.

What is sent is what was decided on: method, path, query and body as they were read, headers that mean nothing to a
policy, and the gateway's own credential. No redirect is followed.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

from adapters import http, urls
from adapters.base import Headers, ToolCall
from adapters.errors import BodyTooLarge, MalformedCall, MethodNotAllowed, UnknownOperation
from adapters.http import HttpCall
from config.settings import ToolSettings
from gateway import carrier
from gateway.carrier import Carrier, Limits, Origin, Timeouts
from gateway.exchange import Exchange, Reached
from gateway.headers import homeward, replaced
from gateway.lifeline import Lifeline
from gateway.oauth.client_credentials import Credential, Fixed, credential
from gateway.problems import TargetFailed, TargetTimeout
from gateway.reply import Reply
from gateway.tools import addresses, operations, results
from gateway.tools.conceal import Concealer
from gateway.tools.desk import Desk
from policies.approvals import HeldCall
from policies.errors import ApprovalsUnavailable
from routing.errors import NoHealthyTarget

_ONWARD: Final = frozenset(
    {
        b"accept",
        b"accept-language",
        b"content-type",
        b"idempotency-key",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-request-id",
    }
)
"""Headers of agents that pass to every tool."""

_IDENTITY: Final = (b"accept-encoding", b"identity")
"""An answer must be readable, so that no credential passes in it."""

_HELD_BACK: Final = 1024 * 1024
"""Bytes of an answer that are awaited before its status is sent on, so that one that breaks off can be told as such."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REPEATABLE: Final = _SAFE | {"PUT", "DELETE"}
_EVENTS: Final = b"text/event-stream"
_PLACES: Final = (b"location", b"content-location")
_ANY_SEGMENTS: Final = "(?:/[^/]*)*"
_CONNECT: Final = 5.0
_LEAST_SECRET: Final = 8
"""Characters of the shortest credential that is masked in answers; a shorter one would mask half of them."""


class HttpTool:
    """Implements `gateway.tools.desk.Tool`."""

    def __init__(self, settings: ToolSettings) -> None:
        """Raises SecretMissing, ConfigError for an OpenAPI document that cannot be used."""
        self.settings = settings
        self._origin, base = Origin.parse(settings.url)
        self._base = base
        self._free = settings.price is None
        self._methods = frozenset(settings.methods)
        self._paths = re.compile("|".join(path_pattern(each) for each in settings.paths))
        self._headers = _ONWARD | {name.encode() for name in settings.headers}
        self._described = operations.Described(settings.openapi) if settings.openapi is not None else None
        self._credential, self._pair, self._secret = _credential(settings)
        self._in_query = urls.plain(urls.pairs(self._pair, "query")[0][0]) if self._pair else ""
        timeouts = Timeouts(
            connect=min(_CONNECT, settings.timeout),
            first_byte=settings.timeout,
            idle=settings.idle,
            total=max(settings.longest, settings.timeout),
        )
        tls: ssl.SSLContext | None = None
        if self._origin.scheme == "https":
            tls = ssl.create_default_context()
            tls.set_alpn_protocols(["http/1.1"])
        self._carrier = Carrier(
            self._origin,
            timeouts=timeouts,
            limits=Limits(connections=settings.concurrent),
            tls=tls,
            allowed=addresses.checker(self._origin.host, settings.networks),
        )

    @property
    def operations(self) -> operations.Described | None:
        """What its OpenAPI document says; None without one."""
        return self._described

    def current(self) -> bool:
        """Whether its OpenAPI document is still the one that it was made with. Raises ConfigError."""
        path = self.settings.openapi
        return path is None or self._described is None or operations.current(path, self._described.digest)

    async def read(self, x: Exchange, body: bytes, rest: str, desk: Desk) -> ToolCall:
        settings = self.settings
        if x.method not in self._methods:
            raise MethodNotAllowed(", ".join(settings.methods))
        if settings.largest_request is not None and len(body) > settings.largest_request:
            raise BodyTooLarge(settings.largest_request)
        urls.check_raw(x.raw_path)
        headers = [line for line in x.headers if line[0] in self._headers]
        return self._read(x.method, rest, x.query, headers, body)

    def stored(self, x: Exchange, held: HeldCall) -> ToolCall:
        rest = held.path.removeprefix(http.PATH).removeprefix(self.settings.name)
        return self._read(held.method, rest, held.query, list(held.headers), held.body)

    def request(self, method: str, path: str, query: bytes, headers: Headers, body: bytes) -> HttpCall:
        """The call that a request made of an operation's arguments is. Raises as `read` does."""
        return self._read(method, path, query, headers, body)

    def _read(self, method: str, path: str, query: bytes, headers: Headers, body: bytes) -> HttpCall:
        name, path = self.settings.name, path or "/"
        urls.check_path(path)
        if not self._paths.fullmatch(path):
            raise UnknownOperation(f"Agents may use nothing at {path[:200]!r} of the tool {name}.")
        described = self._described.operations.find(method, path) if self._described is not None else None
        if described is None and self.settings.only_described:
            words = "Only what its OpenAPI document describes can be called."
            raise UnknownOperation(f"The tool {name} has no operation {method} {path[:200]!r}. {words}")
        call = http.read(name, method, path, query, headers, body, described, free=self._free)
        if self._in_query and any(urls.plain(each) == self._in_query for each, _ in call.parameters):
            raise MalformedCall("The query has the parameter in which the gateway shows its own credential.")
        return call

    async def forward(self, x: Exchange, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        call = x.call
        assert isinstance(call, HttpCall), "what is sent to a plain HTTP tool was read as a request"
        headers = call.headers
        if x.fulfilled is not None and x.fulfilled.headers:
            headers = replaced(headers, x.fulfilled.headers)
        headers = replaced(headers, [_IDENTITY])
        target = self._target(call)
        try:
            async with asyncio.timeout(self.settings.timeout) as deadline:
                answer = await self._let_in(x, call, target, headers)
                try:
                    x.reached, x.target_status = Reached.ANSWERED, answer.status
                    await self._answered(x, call, answer, reply, deadline, desk)
                finally:
                    answer.close()
        except TimeoutError:
            x.detail = f"the whole answer took more than {self.settings.timeout:g} s"
            raise TargetTimeout(f"The tool {self.settings.name} did not answer in time.") from None
        except carrier.CarrierError as error:
            raise self._failure(x, error) from error

    async def fetch(self, call: HttpCall, leaving: Callable[[], None] | None) -> tuple[int, str, bytes]:
        """Status, media type and body of the whole answer to a call that was decided on in another protocol; it is sent
        once. Raises CarrierError, TargetFailed."""
        name = self.settings.name
        try:
            async with asyncio.timeout(self.settings.timeout):
                shown = await self._credential.lines()
                answer = await self._once(call, shown, leaving)
                if answer.status == 401 and (fresh := await self._credential.renewed(shown)) is not None:
                    answer.close()  # as in `_let_in`
                    answer = await self._once(call, fresh, leaving)
                try:
                    pieces: list[bytes] = []
                    size = 0
                    while piece := await answer.read():
                        pieces.append(piece)
                        if (size := size + len(piece)) > self.settings.largest_answer:
                            raise TargetFailed(f"The answer of the tool {name} is longer than this gateway passes on.")
                finally:
                    answer.close()
        except TimeoutError:
            raise carrier.TotalTimeout(self._origin, "the whole answer took too long", sent=True) from None
        if _encoded(answer.headers):
            raise TargetFailed(f"The answer of the tool {name} cannot be understood.")
        body = Concealer(self.secrets).whole(b"".join(pieces))
        return answer.status, _kind(answer.headers).decode("latin-1"), body

    async def _once(self, call: HttpCall, shown: Headers, leaving: Callable[[], None] | None) -> carrier.Reply:
        headers = replaced(call.headers, [_IDENTITY, *shown])
        return await self._carrier.send(
            call.method.encode(), self._target(call), headers, call.kept, once=True, leaving=leaving
        )

    def _target(self, call: HttpCall) -> bytes:
        query = b"&".join(each for each in (call.query, self._pair) if each)
        return (self._base + urls.encoded(call.path)).encode("ascii") + (b"?" + query if query else b"")

    async def _let_in(self, x: Exchange, call: HttpCall, target: bytes, headers: Headers) -> carrier.Reply:
        """As `_sent`; once more with another token where the tool does not take the one that it was shown."""
        shown = await self._credential.lines()
        answer = await self._sent(x, call, target, replaced(headers, shown))
        if answer.status == 401 and (fresh := await self._credential.renewed(shown)) is not None:
            answer.close()  # whoever is not let in has done nothing
            answer = await self._sent(x, call, target, replaced(headers, fresh))
        return answer

    @property
    def secrets(self) -> list[bytes]:
        """What the tool is shown, and no agent may see."""
        return [each for each in (*self._credential.secrets, self._secret) if len(each) >= _LEAST_SECRET]

    async def _sent(self, x: Exchange, call: HttpCall, target: bytes, headers: Headers) -> carrier.Reply:
        """The beginning of an answer, after another try where that cannot do it twice. Raises CarrierError."""

        def leaving() -> None:
            x.reached = Reached.MAYBE

        approved = x.still_claimed is not None
        left = self.settings.retries if call.method in _REPEATABLE else 0
        x.sent_at = time.monotonic()
        while True:
            if x.still_claimed is not None and not x.still_claimed():  # this process has stood still for too long
                raise ApprovalsUnavailable("This call was held up for so long that it is taken for lost.")
            try:
                return await self._carrier.send(
                    call.method.encode(), target, headers, call.kept, once=approved or not left, leaving=leaving
                )
            except (carrier.CarrierTimeout, carrier.ReplyMalformed):  # which is an answer of some kind
                raise
            except carrier.CarrierError as error:
                if left <= 0 or (error.sent and (approved or call.method not in _SAFE)):
                    raise
                left -= 1
            except ValueError as error:
                raise MalformedCall(f"The call's headers cannot be sent on: {error}.") from None

    async def _answered(
        self, x: Exchange, call: HttpCall, answer: carrier.Reply, reply: Reply, deadline: asyncio.Timeout, desk: Desk
    ) -> None:
        """Passes an answer on. Raises CarrierError, TargetFailed; TimeoutError where it is no stream and too slow."""
        status, name = answer.status, self.settings.name
        x.first_byte_at, x.tool_error = time.monotonic(), status >= 400
        headers = self._homeward(call, answer)
        kind = _kind(headers)
        if _encoded(headers):
            x.detail = "the tool encoded its answer although it was asked not to"
            raise TargetFailed(f"The answer of the tool {name} cannot be understood.")
        if 300 <= status < 400 and status != 304 and not any(key == b"location" for key, _ in headers):
            x.detail = f"status {status}: a redirect to elsewhere than below the tool's base"
            raise TargetFailed(f"The tool {name} sends the call elsewhere, where this gateway does not follow it.")
        if not 200 <= status <= 599:
            x.detail = f"status {status} is none that an answer can have"
            raise TargetFailed(f"The answer of the tool {name} cannot be understood.")
        if call.method == "HEAD" or status in (204, 304):
            await _pieces(answer)
            x.whole = True
            await reply.start(status, headers)
            await reply.end()
            return
        concealer = Concealer(self.secrets)
        headers = [line for line in headers if line[0] != b"content-length"]
        checked = self.settings.results == "checked"
        if kind == _EVENTS and not checked:
            deadline.reschedule(None)
            await self._streamed(x, answer, status, headers, reply, concealer, [])
            return
        pieces: list[bytes] = []
        size = 0
        while piece := await answer.read():
            size = self._counted(x, size, piece)
            pieces.append(concealer.feed(piece))
            if size > _HELD_BACK and not checked:
                await self._streamed(x, answer, status, headers, reply, concealer, pieces, size)
                return
        x.whole = True
        pieces.append(concealer.rest())
        body = b"".join(pieces)
        if checked:
            status, headers, body = await results.returned(x, call, status, headers, kind, body, desk)
        await reply.whole(status, headers, body)

    async def _streamed(
        self,
        x: Exchange,
        answer: carrier.Reply,
        status: int,
        headers: Headers,
        reply: Reply,
        concealer: Concealer,
        begun: list[bytes],
        size: int = 0,
    ) -> None:
        await reply.start(status, headers)
        if begun:
            await reply.piece(b"".join(begun))
        while piece := await answer.read():
            size = self._counted(x, size, piece)
            if shown := concealer.feed(piece):
                await reply.piece(shown)
        x.whole = True
        await reply.end(concealer.rest())

    def _counted(self, x: Exchange, size: int, piece: bytes) -> int:
        size += len(piece)
        if size > self.settings.largest_answer:
            x.detail = f"the answer has more than {self.settings.largest_answer} bytes"
            raise TargetFailed(f"The answer of the tool {self.settings.name} is longer than this gateway passes on.")
        return size

    def _homeward(self, call: HttpCall, answer: carrier.Reply) -> Headers:
        headers = homeward(answer.headers)
        for key, value in answer.headers:
            if key in _PLACES and (place := self._place(call, value)) is not None:
                headers = [*(line for line in headers if line[0] != key), (key, place)]
            elif key == b"content-location":
                headers = [line for line in headers if line[0] != key]
        concealer = Concealer(self.secrets)
        return [(key, concealer.whole(value)) for key, value in headers]

    def _place(self, call: HttpCall, value: bytes) -> bytes | None:
        """Where a place that the tool names is at this gateway; None for one that is not below the tool's base."""
        try:
            text = value.decode("ascii")
            parts = urlsplit(urljoin(f"{self._origin}{self._base}{urls.encoded(call.path)}", text))
            if Origin.parse(f"{parts.scheme}://{parts.netloc}")[0] != self._origin:
                return None
            raw = parts.path.encode("ascii")
            urls.check_raw(raw)
            path = unquote(parts.path)
            if path != self._base and not path.startswith(self._base + "/"):
                return None
            below = path[len(self._base) :] or "/"
            urls.check_path(below)
            told = urls.pairs(parts.query.encode(), "query")
            query = urls.written(pair for pair in told if urls.plain(pair[0]) != self._in_query or not self._in_query)
        except (ValueError, MalformedCall):
            return None
        return f"{http.PATH}{self.settings.name}{urls.encoded(below)}".encode() + (b"?" + query if query else b"")

    def _failure(self, x: Exchange, error: carrier.CarrierError) -> Exception:
        """The agent's word for a carrier's error, whose own text names addresses and is for the record."""
        x.detail, name = str(error), self.settings.name
        if isinstance(error, carrier.ConnectTimeout) and self._carrier.statistics().busy >= self.settings.concurrent:
            return NoHealthyTarget(f"The tool {name} has as many calls under way as it may have.")
        if isinstance(error, carrier.CarrierTimeout):
            return TargetTimeout(f"The tool {name} did not answer in time.")
        if isinstance(error, carrier.ReplyBroken):
            return TargetFailed(f"The tool {name} broke off its answer.")
        if isinstance(error, carrier.ReplyMalformed):
            return TargetFailed(f"The answer of the tool {name} cannot be understood.")
        return TargetFailed(f"The tool {name} cannot be reached.")

    async def close(self) -> None:
        await self._carrier.close()

    def retire(self) -> None:
        self._carrier.retire()

    def dismiss(self, whose: str) -> None:
        """Nothing is kept for an agent."""


def _credential(settings: ToolSettings) -> tuple[Credential, bytes, bytes]:
    """What the gateway shows the tool, in headers and as a part of the query; and the secret in `credential`.

    It is read once: the tool is shown the same until the next reload. Raises SecretMissing.
    """
    own = settings.credential
    if own is None:
        return credential(settings), b"", b""
    value = own.value.reveal()
    secret = value.encode("latin-1")
    if own.header is not None:
        return Fixed([(own.header.encode(), secret)]), b"", secret
    return Fixed([]), urls.written([(str(own.query), value)]), secret


def _kind(headers: Headers) -> bytes:
    """The media type of an answer, in lower case and without parameters; empty for none."""
    return next((value for key, value in headers if key == b"content-type"), b"").partition(b";")[0].strip().lower()


def _encoded(headers: Headers) -> bool:
    return any(key == b"content-encoding" and value.lower() != b"identity" for key, value in headers)


async def _pieces(answer: carrier.Reply) -> None:
    """Waits for the end of an answer without a body."""
    while await answer.read():
        pass


def path_pattern(written: str) -> str:
    """A pattern of the configuration as a regular expression.

    What stands between two stars is looked for once, where it comes first: with each star that could reach further the
    tries would multiply, and paths are for agents to write.
    """
    first, *others = re.split(r"/\*\*(?=/|\Z)", written)
    if not others:
        return f"(?:{_segments(first)})"
    inner = "".join(rf"(?>{_ANY_SEGMENTS}?{_segments(each)}(?=/|\Z))" for each in others[:-1])
    return f"(?:{_segments(first)}{inner}{_ANY_SEGMENTS}{_segments(others[-1])})"


def _segments(written: str) -> str:
    return "".join(map(_segment, written.split("/")[1:]))


def _segment(written: str) -> str:
    if written == "*":
        return "/[^/]+"
    first, *others = map(re.escape, written.split("*"))
    if not others:
        return f"/{first}"
    inner = "".join(f"(?>[^/]*?{each})" for each in others[:-1])
    return f"/{first}{inner}[^/]*{others[-1]}"
