"""What a yes demanded, fulfilled before anything leaves: the call is edited, its way and its headers are settled.

Between the policy's answer and people's: what is approved, and what is sent, is the call as it stands afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from adapters.base import OVERRIDES, Adapter, AgentCall, Headers
from adapters.body import EVERY, places, put_first, replace, splice
from adapters.errors import MalformedCall
from gateway import trace
from gateway.exchange import Exchange
from gateway.trace import Trace
from policies.obligations import Edit, Obligations
from routing.table import Route, Table

MOST_ROUNDS: Final = 4
"""Decisions on one call until its edits change nothing any more; a policy that is not content by then never will be."""

_ROOT: Final = "arguments"
"""The part of the call that can be edited: all else is how the call was made."""

_NOT_FOR_POLICIES: Final = frozenset(
    {
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    }
)
"""Headers that say how a request is framed, routed or let in, which is not for a policy to say; `sample` is for
traces."""

_OWN: Final = "x-weighbridge-"

_LARGE: Final = 256 * 1024
_LONGEST_NAME: Final = 40
_LONGEST_POINTER: Final = 100
_MOST_NAMES: Final = 5
"""What an agent is told of a policy's mistake."""


class Unfulfilled(Exception):
    """An obligation that cannot be fulfilled. The text names it and says why, fit for the agent."""


@dataclass(frozen=True, slots=True)
class Fulfilled:
    """What was demanded of one call and done.

    `edited` are the pointers behind which something was changed, per obligation, over all decisions on the call; the
    rest is of the last decision alone. `headers` go to the target, in place of the caller's of the same name.
    """

    edited: dict[str, tuple[str, ...]] = field(default_factory=dict)
    headers: Headers = field(default_factory=list, repr=False)
    route: Route | None = None
    sampled: Trace | None = None

    def facts(self) -> dict[str, Any]:
        """For the record: names and pointers, never values."""
        facts: dict[str, Any] = {name: list(pointers) for name, pointers in self.edited.items()}
        names = [name.decode() for name, _ in self.headers if name not in (b"traceparent", b"tracestate")]
        if names:
            facts["headers"] = names
        if self.route is not None:
            facts["route"] = self.route.name
        if self.sampled is not None:
            facts["sample"] = True
        return facts


async def fulfil(x: Exchange, obligations: Obligations) -> tuple[AgentCall, Fulfilled]:
    """The call as it has to be sent, the same object when nothing in it changes, and what was done. Changes nothing.

    What earlier decisions on this call had edited stays so. Gives way between the edits of a large body. Raises
    Unfulfilled.
    """
    call, before = x.call, x.fulfilled or Fulfilled()
    assert call is not None, "a call is read before anything is demanded of it"
    if obligations.unknown:
        names = ", ".join(f"`{name[:_LONGEST_NAME]}`" for name, _ in obligations.unknown[:_MOST_NAMES])
        raise Unfulfilled(f"{names}: this gateway knows no such obligation")
    headers = [_header(*line) for line in obligations.headers]
    sampled = _trace(x, before).sampled() if obligations.sample else None
    if sampled is not None:
        headers.append((b"traceparent", sampled.header()))
    route = _route(obligations.route, call, x.assembly.table)
    if call.endpoint.answered_here:  # nothing of it is sent anywhere
        return call, Fulfilled(before.edited, headers, route, sampled)
    body, edited = await _edited(obligations, call, x.adapter)
    if body == call.body:  # perhaps because one edit undid another
        return call, Fulfilled(before.edited, headers, route, sampled)
    edited = {
        name: tuple(dict.fromkeys((*before.edited.get(name, ()), *edited.get(name, ()))))
        for name in (*before.edited, *edited)
    }
    return _read_again(call, body, x.adapter), Fulfilled(edited, headers, route, sampled)


def capped(call: AgentCall, most: int, adapter: Adapter) -> AgentCall:
    """The call with answers of at most `most` tokens each: the same object where it asks for no more already.

    Raises Unfulfilled.
    """
    body = _capped(call.body, call.arguments, most, adapter.token_caps(call))[0]
    return call if body == call.body else _read_again(call, body, adapter)


async def _edited(
    obligations: Obligations, call: AgentCall, adapter: Adapter
) -> tuple[bytes, dict[str, tuple[str, ...]]]:
    """The edited body, and the pointers behind which something changed, per obligation."""
    body = call.body
    edited: dict[str, tuple[str, ...]] = {}
    for name, edits in (("replace", obligations.replace), ("redact", obligations.redact)):
        for edit in edits:
            after = _applied(name, edit, body)
            if len(body) > _LARGE:  # the heaviest takes a quarter of a second to walk through
                await asyncio.sleep(0)
            if after is not body:
                edited[name] = (*edited.get(name, ()), edit.pointer)
            body = after
    if obligations.max_tokens is not None:
        arguments = call.arguments if body is call.body else orjson.loads(body)
        body, over = _capped(body, arguments, obligations.max_tokens, adapter.token_caps(call))
        if over:
            edited["max_tokens"] = tuple(f"/{_ROOT}/{name}" for name in over)
    return body, edited


def _capped(
    body: bytes, arguments: Mapping[str, Any], most: int, members: Sequence[str]
) -> tuple[bytes, Sequence[str]]:
    """The body with no more than `most` in any of `members` and OVERRIDES, and those of them that said more."""
    over = _over(arguments, most, members)
    for name in over:
        body = replace(body, name, b"%d" % most)
    return body, over


def _over(arguments: Mapping[str, Any], most: int, members: Sequence[str]) -> Sequence[str]:
    """The members that allow more than `most`, and the first of all where none of `members` says anything."""
    said = [name for name in members if arguments.get(name) is not None]
    over = [name for name in said if not _within(arguments[name], most)] if said else list(members[:1])
    if members:
        over += [name for name in OVERRIDES if name in arguments and not _within(arguments[name], most)]
    return over


def _within(limit: object, most: int) -> bool:
    # Some servers take a negative number for no limit, and others read numbers from texts.
    return isinstance(limit, int | float) and not isinstance(limit, bool) and 0 <= limit <= most


def _applied(name: str, edit: Edit, body: bytes) -> bytes:
    """The body with one edit, the same object when it already is as wanted."""
    if edit.path[0] != _ROOT or len(edit.path) == 1:
        raise Unfulfilled(
            f"`{name}` of {edit.pointer[:_LONGEST_POINTER]!r}: only what is below /{_ROOT} can be changed"
        )
    path = edit.path[1:]
    if edit.adds and path[-1] != EVERY:
        return _put(name, edit, body, path)
    spans = [span for span in places(body, path) if not _same(body[slice(*span)], edit.value)]
    return splice(body, spans, edit.value) if spans else body


def _put(name: str, edit: Edit, body: bytes, path: Sequence[str]) -> bytes:
    """Sets a member wherever its object is, and an element where there is one at its index."""
    around = places(body, path[:-1])
    pieces: list[bytes] = []
    position, changed = 0, False
    for start, end in around:
        text = body[start:end]
        there = places(text, path[-1:])
        if not there and text[:1] != b"{":
            raise Unfulfilled(f"`{name}` of {edit.pointer[:_LONGEST_POINTER]!r}: there is no such place")
        if not there or not _same(text[slice(*there[0])], edit.value):
            text = splice(text, there, edit.value) if there else put_first(text, path[-1], edit.value)
            changed = True
        pieces += (body[position:start], text)
        position = end
    if not around and EVERY not in path:
        raise Unfulfilled(f"`{name}` of {edit.pointer[:_LONGEST_POINTER]!r}: there is no such place")
    return b"".join((*pieces, body[position:])) if changed else body


def _same(one: bytes, other: bytes) -> bool:
    if one == other:
        return True
    try:
        return _canonical(one) == _canonical(other)
    except TypeError:  # nests too deep to be written again: to replace it once more does no harm
        return False


def _canonical(text: bytes) -> bytes:
    return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)


def _read_again(call: AgentCall, body: bytes, adapter: Adapter) -> AgentCall:
    """The edited body is read as every body is, so that the policy and the target see the same call again."""
    try:
        return adapter.edited(call, body)
    except MalformedCall as error:
        raise Unfulfilled(f"`redact` or `replace`: what would be left is no call of this protocol ({error})") from None


def _header(name: str, text: str) -> tuple[bytes, bytes]:
    if name in _NOT_FOR_POLICIES or name.startswith(_OWN):
        raise Unfulfilled(f"`headers`: {name[:_LONGEST_NAME]} is not for a policy to set")
    return name.encode(), text.encode()


def _trace(x: Exchange, before: Fulfilled) -> Trace:
    return before.sampled or trace.read(x.own.get(b"traceparent")) or trace.begin()


def _route(name: str | None, call: AgentCall, table: Table) -> Route | None:
    if name is None:
        return None
    route = table.named(name)
    if route is None:
        raise Unfulfilled(f"`route`: there is no route {name[:_LONGEST_NAME]!r}")
    if not call.endpoint.answered_here and not route.serves(call.protocol, call.operation):
        raise Unfulfilled(f"`route`: {name[:_LONGEST_NAME]!r} has no target that serves {call.operation}")
    return route
