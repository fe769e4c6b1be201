"""Carries a decided call to its target and the answer back: whole if it is whole, event by event if it streams."""

import asyncio
import functools
import re
import time
from collections.abc import Mapping
from typing import Final, Protocol

from adapters import anthropic, openai
from adapters.base import AgentCall, Headers, StreamMeter, Usage
from adapters.errors import GivenUp, MalformedCall
from adapters.meter import bytes_of
from adapters.parallax import Failure, Sniffed, Sniffer, hidden
from adapters.translation import Translation, translation
from gateway import carrier
from gateway.attempts import Attempts
from gateway.exchange import Attempt, Exchange, Reached
from gateway.headers import homeward, onward, parameters, replaced
from gateway.lifeline import Lifeline
from gateway.problems import TargetFailed, TargetTimeout, problem_for, refusal_for
from gateway.reply import Reply
from gateway.usage import TRANSLATED, used
from policies.errors import ApprovalsUnavailable, ApprovalUnknown
from routing.outcomes import FIRST_TOKEN_LATE, OUTCOMES, SELF_HOSTED, Facts, classify
from routing.retry import retry_after
from routing.target import Target

_HELD_BACK: Final = 1024 * 1024
"""Bytes of an unstreamed answer that are awaited before its status is sent on: nearly all answers are shorter, and a
target that breaks off can then still be told as what it is."""

_READ_ON: Final = 4 * _HELD_BACK
"""Bytes of one that is too long to be translated, and is read on all the same: what it has cost stands at its end."""

_REFUSED: Final = OUTCOMES["refused"]
_EVENTS: Final = b"text/event-stream"
_USUAL_LONGEST: Final = 4096
"""Tokens that an answer may have where a target wants to be told and nobody has said."""
_JSON_TYPE: Final = b"application/json"
_JSON: Final[Headers] = [(b"content-type", _JSON_TYPE)]
_HIDDEN: Final[Mapping[str, str]] = {
    "status": "a refusal",
    "stream_cut": "no stream, or one that tells of an error",
    "protocol": "something that is no answer",
}
_MEMBERS: Final = {"openai": openai.MEMBERS, "anthropic": anthropic.MEMBERS}
_NAMED: Final = re.compile(r"`([a-z_]+)")
"""How a MalformedCall of a translation begins."""
_FOREIGN: Final = frozenset({b"request-id", b"x-request-id"})
_FOREIGN_PREFIXES: Final = (b"anthropic-", b"openai-", b"x-ratelimit-")
"""Headers that mean something in the protocol of an answer that is translated into another one."""
_WHEN: Final = frozenset({b"retry-after", b"retry-after-ms"})
_A_DAY: Final = 86_400.0
_LINGERS: Final = 0.25
"""Seconds in which the body of a stream may end behind the last event: its connection then serves another call."""
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


async def forward(x: Exchange, reply: Reply, lifeline: Lifeline, attempts: Attempts) -> None:
    """The call's exchange with a target; with another one where the first fails before the agent has a byte.

    Raises TargetFailed, TargetTimeout, NoHealthyTarget or MalformedCall while the answer has not started; afterwards a
    failure ends the stream with the protocol's error event, and other bodies by dropping the connection.
    """
    attempt = attempts.first(x)
    while True:
        try:
            other = await _attempt(x, attempt, reply, lifeline, attempts)
        except asyncio.CancelledError:
            attempts.ended(x, attempt, client_gone=True)
            raise
        except BaseException:
            attempts.ended(x, attempt, refused=True)  # a target's own failure has ended it before: this is ours
            raise
        attempts.ended(x, attempt)
        if other is None:
            return
        attempt = other


async def _attempt(
    x: Exchange, attempt: Attempt, reply: Reply, lifeline: Lifeline, attempts: Attempts
) -> Attempt | None:
    """One exchange with one node. Gives the attempt that takes the place of this one, None when the agent is answered.

    Raises as `forward` does.
    """
    call, pick = x.call, attempt.pick
    assert call is not None, "a call is read before it is forwarded"
    arm, target = pick.arm, pick.arm.target
    way = x.assembly.lines[target.name].ways[pick.node.url]
    crossing = _crossing(call.protocol, call.operation, target.kind.protocol)
    demanded = x.fulfilled.headers if x.fulfilled is not None else None
    if crossing is None:
        path = way.root + call.endpoint.suffix
        body = x.adapter.onward(call, arm.model)
        headers = onward(x.headers, target.credentials, demanded)
        query = parameters(x.query) if x.query else b""
    else:
        path, query = way.root + crossing.suffix, b""
        try:
            body = crossing.request(call, arm.model, _longest(x, target))
        except MalformedCall as error:
            x.detail = f"the protocol of {target.name} has no words for {_untold(call, error)}"
            attempts.ended(x, attempt, refused=True)
            other = await attempts.elsewhere(x, attempt)
            if other is not None:
                return other
            failed = next((each for each in reversed(x.attempts) if each.outcome is not _REFUSED), None)
            if failed is not None:  # it is not the call's fault, nor that of a target which has got no byte of it
                x.arm, x.target_status = failed.arm, failed.status
                raise TargetFailed("The target failed on this call, and no other one can take it.") from None
            raise
        told = [line for line in x.headers if line[0] not in crossing.withheld]
        headers = replaced(onward(told, target.credentials, demanded), crossing.headers)

    def leaving() -> None:
        if x.still_claimed is not None and not x.still_claimed():  # this process, or its store, has stood still
            raise ApprovalsUnavailable("This call was held up for so long that it is taken for lost; it was not sent.")
        x.reached = Reached.MAYBE
        attempt.stage = "sent"

    x.sent_at = time.monotonic()
    sending = way.carrier.send(
        b"POST", path.encode() + (b"?" + query if query else b""), headers, body, leaving=leaving
    )
    try:
        if call.stream:
            async with asyncio.timeout(target.settings.timeouts.first_token):
                answer = await sending
        else:
            answer = await sending
    except (carrier.CarrierError, TimeoutError) as error:
        return await _instead(x, attempt, attempts, _failure(x, error, attempt))
    except ValueError as error:
        attempts.ended(x, attempt, refused=True)
        raise MalformedCall(f"The call's path or headers cannot be sent on: {error}.") from None
    try:
        return await _answered(x, call, attempt, answer, crossing, reply, lifeline, attempts)
    finally:
        answer.close()


async def _answered(
    x: Exchange,
    call: AgentCall,
    attempt: Attempt,
    answer: carrier.Reply,
    crossing: Translation | None,
    reply: Reply,
    lifeline: Lifeline,
    attempts: Attempts,
) -> Attempt | None:
    """What comes of a target's answer; as `_attempt`."""
    x.reached, attempt.stage = Reached.ANSWERED, "headed"
    x.target_status = attempt.status = answer.status
    kind, encoded = _described(answer.headers)
    target = attempt.arm.target
    if not _succeeded(answer.status):
        attempts.rest(attempt, answer.headers)
        if _worth_another(attempt):
            attempts.ended(x, attempt)
            other = await attempts.next(x, attempt, begun=False)
            if other is not None:
                return other
    elif call.stream and kind != _EVENTS and not encoded:
        found = await _hidden(x, call, attempt, answer, kind, crossing)
        if found is not None:
            return await _unhidden(x, call, attempt, found, crossing, reply, attempts)
    x.detail = _unacceptable(call, answer.status, kind, encoded)
    if x.detail:
        if _succeeded(answer.status) and not call.endpoint.free and x.usage is None:
            x.usage = Usage(estimated=True)  # of what nobody reads the target has made something
        attempt.error = "ReplyMalformed"
        return await _instead(x, attempt, attempts, TargetFailed("The target's answer cannot be understood."))
    secret = target.secret
    headers = homeward(answer.headers)
    if crossing is not None:
        headers = [line for line in headers if line[0] not in _FOREIGN and not line[0].startswith(_FOREIGN_PREFIXES)]
    if secret in b"\n".join([value for _, value in headers]):
        headers = [(name, _concealed(value, secret)) for name, value in headers]
    if not _succeeded(answer.status):
        headers = [line for line in headers if line[0] not in _WHEN or _within_a_day(*line)]
    if kind == _EVENTS and _succeeded(answer.status):
        return await _stream(x, call, attempt, answer, headers, crossing, reply, lifeline, secret, attempts)
    return await _body(x, call, attempt, answer, headers, crossing, reply, lifeline, secret, attempts)


async def _instead(x: Exchange, attempt: Attempt, attempts: Attempts, failure: Exception) -> Attempt:
    """Another attempt in place of one that has failed before the agent got a byte. Raises `failure` where none is, or
    where one that has ended already found none."""
    if attempt.outcome is not None:
        raise failure
    attempts.ended(x, attempt)
    detail = x.detail
    other = await attempts.next(x, attempt, begun=False)
    if other is None:
        x.detail = detail
        raise failure
    return other


async def _unhidden(
    x: Exchange,
    call: AgentCall,
    attempt: Attempt,
    found: Failure,
    crossing: Translation | None,
    reply: Reply,
    attempts: Attempts,
) -> Attempt | None:
    """A failure that stood behind a success: another attempt, or the answer that it should have been."""
    attempt.hidden = found.kind
    if found.kind == "status":
        attempt.status = found.status
    x.detail = f"behind status {x.target_status} stood {_HIDDEN[found.kind]}, worth a status {found.status}"
    if not call.endpoint.free and x.usage is None:
        x.usage = Usage(estimated=True)
    x.whole = x.whole or (bool(found.body) and found.kind == "status")
    attempts.ended(x, attempt)
    other = await attempts.next(x, attempt, begun=False)
    if other is not None:
        return other
    if found.body and found.kind == "status":
        body = found.body if crossing is None else crossing.answer(call, found.status, found.body)
        told = _concealed(body, attempt.arm.target.secret)
        await reply.whole(found.status, _JSON, told)
        return None
    raise TargetFailed("The target failed on this call, behind a status that said otherwise.")


def _worth_another(attempt: Attempt) -> bool:
    """Whether somebody else may say something better than this answer's status."""
    facts = Facts(attempt.arm.target.settings.kind, "headed", attempt.status)
    return classify(facts).retry != "no"


def _untold(call: AgentCall, why: MalformedCall) -> str:
    """The member that a call cannot be translated for, unless its agent has made up the name: that is not recorded."""
    found = _NAMED.match(str(why))
    return f"the call's `{found[1]}`" if found and found[1] in _MEMBERS[call.protocol] else "a member of the call"


@functools.cache
def _crossing(protocol: str, operation: str, target_protocol: str) -> Translation | None:
    return translation(protocol, operation, target_protocol) if protocol != target_protocol else None


def _longest(x: Exchange, target: Target) -> int:
    """Tokens that an answer may have where the agent has not said so and its target wants to be told."""
    if x.clamped is not None:
        return x.clamped
    return target.settings.max_output_tokens or _USUAL_LONGEST


def _succeeded(status: int) -> bool:
    """Whether the target has done what it was asked for: some say so in other words than 200."""
    return 200 <= status <= 299


def _within_a_day(name: bytes, value: bytes) -> bool:
    """Whether a target has said when to come again, and meant it: some clients sleep for as long as they are told."""
    said = value.decode("latin-1")
    in_ms = name == b"retry-after-ms"
    seconds = retry_after(said if in_ms else None, None if in_ms else said, time.time())
    return seconds is not None and seconds < _A_DAY


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
    if kind == _EVENTS and _succeeded(status) and not call.stream:
        return "a call that wanted no stream was answered with one, which clients take for a text"
    return ""


async def _stream(
    x: Exchange,
    call: AgentCall,
    attempt: Attempt,
    answer: carrier.Reply,
    headers: Headers,
    crossing: Translation | None,
    reply: Reply,
    lifeline: Lifeline,
    secret: bytes,
    attempts: Attempts,
) -> Attempt | None:
    target = attempt.arm.target
    sniffer = Sniffer(target.kind.protocol, answer.status, _EVENTS)
    meter = x.adapter.meter(call)
    converter = crossing.stream(call) if crossing is not None else None
    loan: StreamLoan | None = x.lending
    if loan is not None:
        meter.stop_beyond(*_bounds(loan))
    headers = [line for line in headers if line[0] != b"content-length"]
    until = 0.0
    try:
        found = await _sniffed(answer, sniffer, _patience(x, attempt))
        if isinstance(found, Failure):
            return await _unhidden(x, call, attempt, found, crossing, reply, attempts)
        x.first_byte_at = attempt.first_byte_at = time.monotonic()
        attempts.fleet.answered(attempt.pick, x.first_byte_at)
        piece = sniffer.held
        while piece:
            events = meter.feed(piece if converter is None else converter.feed(piece))
            if not reply.started:
                attempt.stage = "begun"
                await reply.start(answer.status, headers, events=True)
            if events:
                await reply.piece(_concealed(events, secret))
            if loan is not None and meter.stopped and not await _goes_on(x, loan, meter, reply, secret):
                attempts.ended(x, attempt, refused=True)
                answer.close()
                await reply.end(_concealed(meter.cut(), secret))
                return None
            if meter.ended or meter.failed:  # many clients close here: what they have got is theirs
                if not until:
                    until = time.monotonic() + _LINGERS
                    lifeline.release()
                    if not meter.failed:
                        x.usage = meter.spent()
                        attempts.ended(x, attempt)
                piece = await _last_words(answer, until)
            else:
                piece = await answer.read()
        last = meter.feed(converter.rest()) if converter is not None else b""
        rest = _concealed(last + meter.rest(), secret)
    except (carrier.CarrierError, ValueError, TimeoutError) as error:
        if attempt.outcome is not None:  # what is wrong behind its last event harms no answer
            await reply.end()
            return None
        failure = _failure(x, error, attempt)
        if not reply.started:
            x.usage = meter.spent()
            return await _instead(x, attempt, attempts, failure)
        await _break_off(x, failure, reply)
    else:
        if not reply.started:
            x.detail, x.usage = "the stream had no event", meter.spent()
            attempt.complete = False
            return await _instead(x, attempt, attempts, TargetFailed("The target's stream ended before it began."))
        if not meter.complete and not meter.failed:
            x.detail = "the stream ended without the protocol's sign of completion"
            await _break_off(x, TargetFailed("The target's stream ended before its answer did."), reply, rest)
        else:
            await reply.end(rest)
    finally:
        if attempt is x.attempts[-1] and not attempt.hidden:
            if reply.started or x.usage is None:
                x.usage = meter.spent()
            x.whole = meter.complete or meter.failed
            attempt.complete = meter.complete and not meter.failed
            if call.endpoint.keeps:
                attempts.keep(x, attempt, meter.made)
            if attempt.outcome is not None:
                attempt.usage = x.usage
            if loan is not None:
                loan.passed = meter.produced
    if meter.failed and x.code == "ok" and attempt.outcome is None:
        x.code, x.detail = "target_failed", "the target reported an error inside its stream"
    return None


def _patience(x: Exchange, attempt: Attempt) -> float:
    """Seconds that are left for the first of a streamed answer."""
    assert x.sent_at is not None, "an answer comes to what was sent"
    return max(attempt.arm.target.settings.timeouts.first_token - (time.monotonic() - x.sent_at), 0.0)


async def _sniffed(answer: carrier.Reply, sniffer: Sniffer, patience: float) -> Sniffed | Failure:
    """What a stream's first event says of it. Raises CarrierError, and TimeoutError where it does not come in time."""
    found: Sniffed | Failure = Sniffed.UNDECIDED
    async with asyncio.timeout(patience):
        while found is Sniffed.UNDECIDED:
            piece = await answer.read()
            found = sniffer.feed(piece) if piece else sniffer.end()
    return found


async def _last_words(answer: carrier.Reply, until: float) -> bytes:
    """What comes behind the last event of a stream; empty where its body ends, breaks or goes on for too long."""
    if answer.complete:
        return b""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await answer.read()
    except (carrier.CarrierError, TimeoutError):
        return b""


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
    attempt: Attempt,
    answer: carrier.Reply,
    headers: Headers,
    crossing: Translation | None,
    reply: Reply,
    lifeline: Lifeline,
    secret: bytes,
    attempts: Attempts,
) -> Attempt | None:
    body, size, ended = b"", 0, False
    found: Failure | None = None
    succeeded = _succeeded(answer.status)
    try:
        body = await answer.read()
        size = len(body)
        x.first_byte_at = attempt.first_byte_at = time.monotonic()
        if not answer.complete and body:
            pieces = [body]
            while size <= _HELD_BACK and (piece := await answer.read()):
                pieces.append(piece)
                size += len(piece)
            body = b"".join(pieces)
        beginning = body
        if size <= _HELD_BACK:
            ended = True
            if crossing is not None:
                if succeeded:
                    found = hidden(TRANSLATED[attempt.arm.target.kind.protocol], answer.status, _JSON_TYPE, body)
                if found is None:
                    body = crossing.answer(call, answer.status, body)
        elif crossing is not None:
            while succeeded and size <= _READ_ON and not ended:
                piece = await answer.read()
                size, body, ended = size + len(piece), (body + piece)[-_TAIL:], not piece
            raise ValueError("an answer of more than a megabyte cannot be translated")
        else:
            attempt.stage = "begun"
            await reply.start(answer.status, headers)
            await reply.piece(_concealed(body, secret))
            body = body[-_TAIL:]
            while piece := await answer.read():
                size += len(piece)
                body = (body + piece)[-_TAIL:]
                await reply.piece(_concealed(piece, secret))
            ended = True
    except (carrier.CarrierError, ValueError) as error:
        failure = _failure(x, error, attempt)
        attempt.complete = False
        x.whole = ended
        if succeeded and not call.endpoint.free:
            untranslated = attempt.arm.target if crossing is not None else None
            x.usage = used(x.adapter, call, body if ended else b"", size, untranslated)
        if not reply.started:
            return await _instead(x, attempt, attempts, failure)
        x.code = refusal_for(failure, x.id).code
        lifeline.abort()
        return None
    except BaseException:  # the agent has left, or what goes wrong is ours: the target has answered all the same
        if succeeded and not call.endpoint.free:
            x.usage = used(x.adapter, call, b"", size)
        raise
    finally:
        if attempt is x.attempts[-1]:
            x.whole = ended
    if succeeded and not call.endpoint.free:
        untranslated = attempt.arm.target if crossing is not None and found is not None else None
        x.usage = usage = used(x.adapter, call, body, size if crossing is None else len(body), untranslated)
        # Who has counted what it says has said something, and nearly all do; our own nodes are not believed that.
        own = attempt.arm.target.settings.kind in SELF_HOSTED
        doubtful = own or usage.estimated or b'"error"' in body or b'"abort"' in body
        if doubtful and ended and size <= _HELD_BACK and crossing is None:
            found = hidden(call.operation, answer.status, _described(answer.headers)[0], body)
        if found is not None:
            return await _unhidden(x, call, attempt, found, crossing, reply, attempts)
    if succeeded:
        attempts.fleet.answered(attempt.pick, x.first_byte_at)
        if call.endpoint.keeps:
            attempts.keep(x, attempt, x.adapter.made(call, beginning))
    if size <= _HELD_BACK:
        headers = [line for line in headers if line[0] != b"content-length"]
        if crossing is not None:
            headers = replaced(headers, _JSON)
        await reply.whole(answer.status, headers, _concealed(body, secret))
    else:
        await reply.end()
    return None


async def _hidden(
    x: Exchange, call: AgentCall, attempt: Attempt, answer: carrier.Reply, kind: bytes, crossing: Translation | None
) -> Failure | None:
    """What stands behind a success that is no stream where one was asked for."""
    target = attempt.arm.target
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_patience(x, attempt)):
            while size <= _TAIL * 16 and not x.whole:
                piece = await answer.read()
                pieces.append(piece)
                size, x.whole = size + len(piece), not piece
    except (carrier.CarrierError, TimeoutError) as error:
        x.detail = f"{type(error).__name__}: {error}"
    finally:
        body = b"".join(pieces)
        if not call.endpoint.free:
            untranslated = target if crossing is not None else None
            x.usage = used(x.adapter, call, body, size, untranslated) if x.whole else Usage(estimated=True)
            if x.lending is not None:
                x.lending.passed = x.usage.output_tokens  # it is not for its being unseen that none has passed
    operation = call.operation if crossing is None else TRANSLATED[target.kind.protocol]
    return hidden(operation, answer.status, kind, body)


def _concealed(text: bytes, secret: bytes) -> bytes:
    """A target that repeats the key it was sent must not tell it to an agent. The length stays."""
    return text.replace(secret, b"*" * len(secret)) if secret in text else text


async def _break_off(x: Exchange, failure: Exception, reply: Reply, rest: bytes = b"") -> None:
    x.code = problem_for(failure).code
    if x.used_up and x.approval is not None:
        failure = ApprovalUnknown(str(failure), x.approval.id)
    refusal = refusal_for(failure, x.id)
    await reply.end(rest + x.adapter.broken_stream(refusal))


def _failure(x: Exchange, error: Exception, attempt: Attempt) -> Exception:
    """The agent's word for a carrier's error, whose own text names addresses and is for the record."""
    if isinstance(error, TimeoutError) and not isinstance(error, carrier.CarrierError):
        attempt.error = FIRST_TOKEN_LATE
        x.detail = f"nothing of an answer came within {attempt.arm.target.settings.timeouts.first_token:g} s"
        return TargetTimeout("The target did not begin its answer in time.")
    attempt.error = type(error).__name__ if isinstance(error, carrier.CarrierError) else "ReplyMalformed"
    if isinstance(error, GivenUp):
        attempt.error = carrier.ReplyBroken.__name__
    secret = attempt.arm.target.secret.decode("latin-1")
    x.detail = str(error).replace(secret, "*" * len(secret))
    if isinstance(error, carrier.CarrierTimeout):
        return TargetTimeout("The target did not answer in time.")
    if isinstance(error, carrier.ReplyBroken | GivenUp):
        return TargetFailed("The target broke off its answer.")
    if isinstance(error, carrier.ReplyMalformed | ValueError):
        return TargetFailed("The target's answer cannot be understood.")
    return TargetFailed("The target cannot be reached.")
