"""Carries a decided call to its target and the answer back: whole if it is whole, event by event if it streams."""

import time

from adapters.base import AgentCall, Headers
from adapters.errors import MalformedCall
from gateway import carrier
from gateway.exchange import Exchange
from gateway.headers import homeward, onward, parameters
from gateway.lifeline import Lifeline
from gateway.problems import TargetFailed, TargetTimeout, refusal_for
from gateway.reply import Reply

_HELD_BACK = 1024 * 1024
"""Bytes of an unstreamed answer that are awaited before its status is sent on: nearly all answers are shorter, and a
target that breaks off can then still be told as what it is."""

_EVENTS = b"text/event-stream"
_TAIL = 4096
"""Bytes of a longer answer that are kept: token counts stand at its end."""


async def forward(x: Exchange, reply: Reply, lifeline: Lifeline) -> None:
    """One exchange with the chosen target.

    Raises TargetFailed or TargetTimeout while the answer has not started; afterwards a failure ends the stream with the
    protocol's error event, and other bodies by dropping the connection.
    """
    call, arm = x.call, x.arm
    assert call is not None, "a call is read before it is forwarded"
    assert arm is not None, "a target is chosen before the call is forwarded"
    line = x.assembly.lines[arm.target.name]
    path = (line.root + call.endpoint.suffix).encode()
    if x.query and (query := parameters(x.query)):
        path += b"?" + query
    body = x.adapter.onward(call, arm.model)
    demanded = x.fulfilled.headers if x.fulfilled is not None else None
    x.sent_at = time.monotonic()
    try:
        answer = await line.carrier.send(b"POST", path, onward(x.headers, arm.target.credentials, demanded), body)
    except carrier.CarrierError as error:
        raise _failure(x, error) from None
    except ValueError as error:
        raise MalformedCall(f"The call's path or headers cannot be sent on: {error}.") from None
    try:
        x.target_status = answer.status
        kind, encoded = _described(answer.headers)
        x.detail = _unacceptable(call, answer.status, kind, encoded)
        if x.detail:
            raise TargetFailed("The target's answer cannot be understood.")
        secret = arm.target.secret
        headers = homeward(answer.headers)
        if secret in b"\n".join([value for _, value in headers]):
            headers = [(name, _concealed(value, secret)) for name, value in headers]
        if kind == _EVENTS and answer.status == 200:
            await _stream(x, call, answer, headers, reply, secret)
        else:
            await _body(x, call, answer, headers, reply, lifeline, secret)
    finally:
        answer.close()


def _described(headers: Headers) -> tuple[bytes, bool]:
    """The content type, in lower case and without parameters, and whether the body is encoded."""
    kind, encoded = b"", False
    for name, value in headers:
        if name == b"content-type":
            kind = kind or value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding":
            encoded = encoded or value not in (b"", b"identity")
    return kind, encoded


def _unacceptable(call: AgentCall, status: int, kind: bytes, encoded: bool) -> str:
    """Why an answer must not reach an agent; empty when it may."""
    if not 200 <= status <= 599:
        return f"status {status} is none that an answer can have"
    if 300 <= status <= 399:
        return f"status {status}: an agent that followed a redirect would walk around the gate"
    if encoded:
        return "the target encoded its answer although it was asked not to"
    if call.stream and status == 200 and kind != _EVENTS:
        return "a streamed call was answered without a stream, which clients take for an empty one"
    return ""


async def _stream(
    x: Exchange, call: AgentCall, answer: carrier.Reply, headers: Headers, reply: Reply, secret: bytes
) -> None:
    meter = x.adapter.meter(call)
    headers = [line for line in headers if line[0] != b"content-length"]
    try:
        while piece := await answer.read():
            if x.first_byte_at is None:
                x.first_byte_at = time.monotonic()
            events = meter.feed(piece)
            if not reply.started:
                await reply.start(answer.status, headers)
            if events:
                await reply.piece(_concealed(events, secret))
        rest = _concealed(meter.rest(), secret)
    except (carrier.CarrierError, ValueError) as error:
        failure = _failure(x, error)
        if not reply.started:
            raise failure from None
        await _break_off(x, failure, reply)
    else:
        if not reply.started:
            x.detail = "the stream had no event"
            raise TargetFailed("The target's stream ended before it began.")
        if not meter.complete and not meter.failed:
            x.detail = "the stream ended without the protocol's sign of completion"
            await _break_off(x, TargetFailed("The target's stream ended before its answer did."), reply, rest)
        else:
            await reply.end(rest)
    finally:
        x.usage = meter.usage
    if meter.failed and x.code == "ok":
        x.code, x.detail = "target_failed", "the target reported an error inside its stream"


async def _body(
    x: Exchange,
    call: AgentCall,
    answer: carrier.Reply,
    headers: Headers,
    reply: Reply,
    lifeline: Lifeline,
    secret: bytes,
) -> None:
    try:
        body = await answer.read()
        x.first_byte_at = time.monotonic()
        if not answer.complete and body:
            pieces, size = [body], len(body)
            while size <= _HELD_BACK and (piece := await answer.read()):
                pieces.append(piece)
                size += len(piece)
            body = b"".join(pieces)
    except carrier.CarrierError as error:
        raise _failure(x, error) from None
    if len(body) <= _HELD_BACK:
        if answer.status == 200:
            x.usage = x.adapter.usage(call, body)
        headers = [line for line in headers if line[0] != b"content-length"]
        await reply.whole(answer.status, headers, _concealed(body, secret))
        return
    await reply.start(answer.status, headers)
    await reply.piece(_concealed(body, secret))
    tail = body[-_TAIL:]
    try:
        while piece := await answer.read():
            tail = (tail + piece)[-_TAIL:]
            await reply.piece(_concealed(piece, secret))
    except carrier.CarrierError as error:
        failure = _failure(x, error)
        x.code = refusal_for(failure, x.id).code
        lifeline.abort()
    else:
        if answer.status == 200:
            x.usage = x.adapter.usage(call, tail)
        await reply.end()


def _concealed(text: bytes, secret: bytes) -> bytes:
    """A target that repeats the key it was sent must not tell it to an agent. The length stays."""
    return text.replace(secret, b"*" * len(secret)) if secret in text else text


async def _break_off(x: Exchange, failure: Exception, reply: Reply, rest: bytes = b"") -> None:
    refusal = refusal_for(failure, x.id)
    x.code = refusal.code
    await reply.end(rest + x.adapter.broken_stream(refusal))


def _failure(x: Exchange, error: Exception) -> Exception:
    """The agent's word for a carrier's error, whose own text names addresses and is for the record."""
    x.detail = f"{type(error).__name__}: {error}"
    if isinstance(error, carrier.CarrierTimeout):
        return TargetTimeout("The target did not answer in time.")
    if isinstance(error, carrier.ReplyBroken):
        return TargetFailed("The target broke off its answer.")
    if isinstance(error, carrier.ReplyMalformed | ValueError):
        return TargetFailed("The target's answer cannot be understood.")
    return TargetFailed("The target cannot be reached.")
