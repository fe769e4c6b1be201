"""Carries a decided call to its target and the answer back: whole if it is whole, event by event if it streams."""

import dataclasses
import time
from typing import Final, Protocol

from adapters.base import AgentCall, Headers, StreamMeter, Usage
from adapters.errors import MalformedCall
from adapters.meter import bytes_of, tokens_of
from gateway import carrier
from gateway.exchange import Exchange, Reached
from gateway.headers import homeward, onward, parameters
from gateway.lifeline import Lifeline
from gateway.problems import TargetFailed, TargetTimeout, refusal_for
from gateway.reply import Reply

_HELD_BACK: Final = 1024 * 1024
"""Bytes of an unstreamed answer that are awaited before its status is sent on: nearly all answers are shorter, and a
target that breaks off can then still be told as what it is."""

_EVENTS: Final = b"text/event-stream"
_TAIL: Final = 4096
"""Bytes of a longer answer that are kept: token counts stand at its end."""

# Who honours `max_tokens` must never be cut for it. Over a whole answer a token has 4 bytes of English, and some 13 of
# scripts with three bytes a letter, whose words large vocabularies hold whole. A few tokens may be far longer: rare
# words, rows of up to 128 spaces. That is what the allowance beside it is for.
_BYTES_A_TOKEN: Final = 16
_LONG_TOKENS: Final = 1024


class StreamLoan(Protocol):
    """What a stream has to know of the loan that pays for it. Tokens are those that a meter has `produced`."""

    @property
    def mark(self) -> int:
        """How many tokens may pass before `more` is asked."""
        ...

    @property
    def limit(self) -> int:
        """The most that the call was granted at all; an honest target produces no more tokens than that."""
        ...

    passed: int
    """To be told how many there were when the stream is over."""

    async def more(self, produced: int) -> bool:
        """Borrows for what comes after so many tokens and raises the mark; False where nobody lends that."""
        ...


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

    def leaving() -> None:
        x.reached = Reached.MAYBE

    x.sent_at = time.monotonic()
    headers = onward(x.headers, arm.target.credentials, demanded)
    try:
        answer = await line.carrier.send(b"POST", path, headers, body, leaving=leaving)
    except carrier.CarrierError as error:
        raise _failure(x, error) from None
    except ValueError as error:
        raise MalformedCall(f"The call's path or headers cannot be sent on: {error}.") from None
    try:
        x.reached = Reached.ANSWERED
        x.target_status = answer.status
        kind, encoded = _described(answer.headers)
        x.detail = _unacceptable(call, answer.status, kind, encoded)
        if x.detail:
            if _succeeded(answer.status) and not call.endpoint.free:
                x.usage = Usage(estimated=True)  # of what nobody reads the target has made something
            raise TargetFailed("The target's answer cannot be understood.")
        secret = arm.target.secret
        headers = homeward(answer.headers)
        if secret in b"\n".join([value for _, value in headers]):
            headers = [(name, _concealed(value, secret)) for name, value in headers]
        if kind == _EVENTS and _succeeded(answer.status):
            await _stream(x, call, answer, headers, reply, secret)
        else:
            await _body(x, call, answer, headers, reply, lifeline, secret)
    finally:
        answer.close()


def _succeeded(status: int) -> bool:
    """Whether the target has done what it was asked for: some say so in other words than 200."""
    return 200 <= status <= 299


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
    if call.stream and _succeeded(status) and kind != _EVENTS:
        return "a streamed call was answered without a stream, which clients take for an empty one"
    return ""


async def _stream(
    x: Exchange, call: AgentCall, answer: carrier.Reply, headers: Headers, reply: Reply, secret: bytes
) -> None:
    meter = x.adapter.meter(call)
    loan: StreamLoan | None = x.lending
    if loan is not None:
        meter.stop_beyond(*_bounds(loan))
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
            if loan is not None and meter.stopped and not await _goes_on(x, loan, meter, reply, secret):
                answer.close()
                await reply.end(_concealed(meter.cut(), secret))
                return
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
        x.usage = meter.spent()
        x.whole = meter.complete or meter.failed
        if loan is not None:
            loan.passed = meter.produced
    if meter.failed and x.code == "ok":
        x.code, x.detail = "target_failed", "the target reported an error inside its stream"


async def _goes_on(x: Exchange, loan: StreamLoan, meter: StreamMeter, reply: Reply, secret: bytes) -> bool:
    """Borrows for a stream that has stopped, and lets pass what has waited; False when the stream ends here."""
    while meter.stopped:
        if meter.pieces > loan.limit or meter.said > _most_bytes(loan.limit):
            x.detail = f"cut: the target went on beyond the {loan.limit} tokens that it was allowed"
            return False
        if not await loan.more(meter.produced):
            x.code, x.detail = "budget_exhausted", f"cut after about {meter.produced} tokens: nobody lends more"
            return False
        meter.stop_beyond(*_bounds(loan))
        if events := meter.feed(b""):
            await reply.piece(_concealed(events, secret))
    return True


def _bounds(loan: StreamLoan) -> tuple[int, int]:
    """(pieces, bytes) beyond which a stream stops: because of the mark, or of the limit."""
    mark, limit = loan.mark, loan.limit
    return min(mark, limit), min(bytes_of(mark), _most_bytes(limit))


def _most_bytes(limit: int) -> int:
    return _BYTES_A_TOKEN * limit + _LONG_TOKENS


async def _body(
    x: Exchange,
    call: AgentCall,
    answer: carrier.Reply,
    headers: Headers,
    reply: Reply,
    lifeline: Lifeline,
    secret: bytes,
) -> None:
    body, size, ended = b"", 0, False
    try:
        body = await answer.read()
        size = len(body)
        x.first_byte_at = time.monotonic()
        if not answer.complete and body:
            pieces = [body]
            while size <= _HELD_BACK and (piece := await answer.read()):
                pieces.append(piece)
                size += len(piece)
            body = b"".join(pieces)
        if size <= _HELD_BACK:
            ended = True
        else:
            await reply.start(answer.status, headers)
            await reply.piece(_concealed(body, secret))
            body = body[-_TAIL:]
            while piece := await answer.read():
                size += len(piece)
                body = (body + piece)[-_TAIL:]
                await reply.piece(_concealed(piece, secret))
            ended = True
    except carrier.CarrierError as error:
        failure = _failure(x, error)
        if not reply.started:
            raise failure from None
        x.code = refusal_for(failure, x.id).code
        lifeline.abort()
        return
    finally:
        x.whole = ended
        if _succeeded(answer.status) and not call.endpoint.free:
            x.usage = _used(x, call, body if ended else b"", size)
    if size <= _HELD_BACK:
        headers = [line for line in headers if line[0] != b"content-length"]
        await reply.whole(answer.status, headers, _concealed(body, secret))
    else:
        await reply.end()


def _used(x: Exchange, call: AgentCall, body: bytes, size: int) -> Usage:
    """Tokens of an unstreamed answer of `size` bytes: all of it in `body`, its end, or nothing where it broke off.

    A target that reports none for what it has said has not counted.
    """
    usage = x.adapter.usage(call, body) if body else None
    if usage is not None and usage.output_tokens:
        return usage
    if len(body) == size:
        counted = x.adapter.counted(call, body)
    else:
        counted = tokens_of(size) if x.adapter.token_caps(call) else 0
    if usage is None:
        return Usage(output_tokens=counted, estimated=True)
    return dataclasses.replace(usage, output_tokens=counted, estimated=True) if counted else usage


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
