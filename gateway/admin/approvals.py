"""Calls that people decide on: what is held, each person's word, other arguments, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import orjson
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from adapters.errors import MalformedCall, MethodNotAllowed, UnknownEndpoint
from gateway.admin import news as following
from gateway.admin.operation import AFTER, LONGEST, Operation, Parameter, Usd, View, Visit, body, page_size
from gateway.approval_view import Number, json_text, parsed, shown
from gateway.identity import Person, Unauthenticated
from policies import approvals as rules
from policies.approval_store import StoreUnavailable
from policies.approvals import Approval, NotEntitled, Refused, State
from policies.binding import Change, Unbindable, arguments, changes
from policies.errors import BudgetsUnavailable, Denied, EngineUnavailable, InputRefused, Undecided

LONGEST_COMMENT: Final = 500
ID: Final = re.compile("apr_[0-9A-HJKMNP-TV-Z]{26}", re.ASCII)

_PAGE: Final = 50
"""Approvals of one answer, where nothing else is asked for."""
_LONGEST_PAGE: Final = 500
_MOST_BYTES: Final = 8 * 1024 * 1024
"""Bytes of calls in one answer, but for a single one that is longer."""
_FIRST: Final = 10
_LOOKED_AT_ONCE: Final = 100
"""Approvals that are fetched first, and then at most at once: fewer where they are long."""
_MOST_LOOKED_AT: Final = 2000
"""Approvals of which one answer picks those that fit; it says where the next one goes on."""
_LONGEST_WAIT: Final = 60.0
_NEWS_TO_COME: Final = frozenset({State.PENDING, State.CONSUMED})
"""States that whoever waits, and has seen nothing yet, waits for the end of."""
_GLANCE: Final = 1.0
"""Seconds after which somebody who waits notices that the gateway ends."""
_SIGN_OF_LIFE: Final = 15.0
_AROUND: Final = 64 * 1024
"""Bytes of a change beside its arguments."""
_LONG: Final = 64 * 1024
"""Bytes of JSON that are read in about a millisecond: what is longer is for a thread."""

NOT_RECORDED: Final = "The ledger cannot be written, and what is not on record is not done."
_NOT_KNOWN: Final = "The state does not answer; whether anything has changed is not known. Look, and ask again."
_NOT_THERE: Final = "No approval has this id, or it was long ago. GET /approvals lists them."


class VoteView(View):
    person: str
    approve: bool
    roles: list[str] = Field(description="Which of the needed ones the person had.")
    at: float
    comment: str


class ChangeView(View):
    pointer: str = Field(description="RFC 6901.")
    old: str | None = Field(description="JSON; null where there was none.")
    new: str | None = Field(description="JSON; null where there is none now.")


class ApprovalView(View):
    """One call that people decide on, as it will run. Times are seconds since the epoch."""

    id: str
    state: State
    agent: str
    tenant: str
    session: str | None
    kind: str
    protocol: str
    target: str
    operation: str
    arguments: Any = Field(description="In full, to the digit; null where the body is no JSON.")
    body: str | None = Field(description="The body, where it is a text and no JSON.")
    body_base64: str | None = Field(description="The body, where it is neither.")
    method: str
    path: str
    query: str
    headers: list[tuple[str, str]] = Field(description="Those that go on to the target.")
    stream: bool
    required_approvals: list[str] = Field(description="Roles; one person for each.")
    missing_approvals: list[str] = Field(description="Those that nobody has filled yet.")
    votes: list[VoteView]
    risk_level: str | None
    explanation: str = Field(description="Why the policy wants people to decide.")
    reason: str = Field(description="Why it came to its state.")
    estimated_cost_usd: Usd | None
    policy: str = Field(description="The revision of the policy that wanted it.")
    binding: str = Field(description="SHA-256 of what is decided on; see docs/approvals.md.")
    call: str = Field(description="The call that was held first.")
    used_by: str | None = Field(description="The call that has used it.")
    instead_of: str | None = Field(description="The approval whose arguments a person has changed into these.")
    became: str | None = Field(description="The approval that has its place, with other arguments.")
    changes: list[ChangeView] | None = Field(
        description="What is another than in `instead_of`; null where nothing is, or that one is forgotten."
    )
    version: int = Field(description="Counts its changes.")
    earlier: str = Field(description="What is known of the identical call before: it may have run, or has lately.")
    lacking_roles: list[str] = Field(description="Those of the missing ones that nobody has.")
    mine: bool = Field(description="Whether who asks can bring it nearer to a yes now.")
    created: float
    changed: float = Field(description="When it came to its state.")
    decide_by: float
    use_by: float | None


class ApprovalList(View):
    items: list[ApprovalView]
    next: str | None = Field(description="`after` of the next page, which may have fewer items; null at the end.")


class Word(View):
    """A person's word."""

    comment: str = Field(default="", description="For the record; a no is told to the agent.", max_length=500)
    version: int | None = Field(default=None, description="The version that was shown: another one is refused.")


class OtherArguments(Word):
    """A yes to the call with other arguments."""

    arguments: dict[str, Any] = Field(description="All of them.")


class Comment(View):
    comment: str = Field(default="", description="Why, for the record.", max_length=500)


async def approvals(visit: Visit) -> Response:
    """One page, the oldest first."""
    asked, store = visit.query, visit.app.holds.store
    states = _states(asked.get("state"))
    mine = _flag(asked, "mine")
    after, tenant = asked.get("after"), asked.get("tenant")
    if after is not None and not ID.fullmatch(after):
        raise HTTPException(400, "`after` is no approval's id. Begin again without it.")
    most = page_size(asked, _PAGE, _LONGEST_PAGE)
    found: list[Approval] = []
    looked, size, more, at_once = 0, 0, True, _FIRST
    with asking():
        while more and looked < _MOST_LOOKED_AT:
            batch = await store.listed(states, tenant, after, at_once)
            more, looked = len(batch) == at_once, looked + len(batch)
            fetched = sum(len(each.call.body) for each in batch)
            at_once = max(1, min(_LOOKED_AT_ONCE, _MOST_BYTES * len(batch) // (fetched + 1)))
            for each in batch:
                if _fits(each, asked) and (
                    not mine or can_decide(visit.app.holds.by_now(each), visit.person, store.now_ns())
                ):
                    size += len(each.call.body)
                    if len(found) == most or (found and size > _MOST_BYTES):
                        return await _page(visit, found, found[-1].id)
                    found.append(each)
                after = each.id
    return await _page(visit, found, after if more else None)


async def approval(visit: Visit) -> Response:
    """One, now or, with `wait`, when there is news of it."""
    asked, holds = visit.query, visit.app.holds
    seconds, seen = _wait(asked.get("wait")), _version(asked.get("version"))
    name = _named(visit)
    until = time.monotonic() + seconds
    with asking(), holds.waits(name) as waiter:
        found = await _found(visit, name)
        awaited = rules.ACTIVE if seen is not None else _NEWS_TO_COME
        seen = found.version if seen is None else seen
        while (
            found.version == seen
            and found.state in awaited
            and (left := until - time.monotonic()) > 0
            and not visit.app.ending.is_set()
        ):
            if await waiter.woken(min(left, _GLANCE)):
                found = await _found(visit, name)
    return await _one(visit, found)


def _word(yes: bool) -> Callable[[Visit], Awaitable[Response]]:
    async def say(visit: Visit) -> Response:
        name = _named(visit)
        wanted = sent_object(await body(visit.request), Word)
        comment, seen = said(wanted), _seen(wanted)
        if yes:
            check_ledger(visit)
        async with visit.desk.changing:
            with asking(_NOT_KNOWN), refusing():
                await _check_version(visit, name, seen)
                person = visit.person
                async with _naming_others(visit, name):
                    found = await visit.app.holds.vote(name, person.name, person.roles, yes, comment)
            visit.app.ledger.flush()
        return await _one(visit, found)

    return say


async def change(visit: Visit) -> Response:
    """A yes to other arguments: the new approval, of which the policy was asked again."""
    name, holds, person = _named(visit), visit.app.holds, visit.person
    longest = visit.app.settings.listen.max_body
    sent = await body(visit.request, max(longest, LONGEST) + _AROUND)
    wanted, arguments = _other(sent) if len(sent) <= _LONG else await asyncio.to_thread(_other, sent)
    comment, seen = said(wanted), _seen(wanted)
    if len(arguments) > longest:
        raise HTTPException(413, f"The arguments are longer than {longest} bytes.")
    check_ledger(visit)
    async with visit.desk.changing:
        with asking(_NOT_KNOWN), refusing():
            await _check_version(visit, name, seen)
            judge = visit.app.pipeline.reconsider
            async with _naming_others(visit, name):
                found = await holds.change(name, person.name, person.roles, arguments, judge, comment)
        visit.app.ledger.flush()
    return await _one(visit, found)


async def cancel(visit: Visit) -> Response:
    """Takes back a call that is not decided, or a yes that is not used."""
    name = _named(visit)
    comment = said(sent_object(await body(visit.request), Comment))
    async with visit.desk.changing:
        with asking(_NOT_KNOWN), refusing():
            found = await visit.app.holds.cancel(name, visit.person.name, comment)
        visit.app.ledger.flush()
    return await _one(visit, found)


def _found_out(ran: bool) -> Callable[[Visit], Awaitable[Response]]:
    async def say(visit: Visit) -> Response:
        name = _named(visit)
        comment = said(sent_object(await body(visit.request), Comment))
        check_ledger(visit)
        async with visit.desk.changing:
            with asking(_NOT_KNOWN), refusing():
                found = await visit.app.holds.resolve(name, visit.person.name, ran, comment)
            visit.app.ledger.flush()
        return await _one(visit, found)

    return say


async def stream(visit: Visit) -> Response:
    """An event for each change; ends with the gateway, and when the person may no longer ask."""
    news, app, person = visit.desk.news, visit.app, visit.person
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    if visit.request.method == "HEAD":
        return Response(None, 200, headers, "text/event-stream")
    if news.full:
        raise HTTPException(503, f"{following.MOST_FOLLOWERS} clients follow already; ask for the list instead.")

    async def events() -> AsyncIterator[bytes]:
        with news.followed() as follower:
            yield b": following\n\n"
            while not app.ending.is_set():
                event = await follower.next(_SIGN_OF_LIFE)
                if all(each.name != person.name for each in app.settings.admin.people):
                    return
                if event is not None:
                    yield event
                elif not app.ending.is_set():
                    yield b": nothing new\n\n"

    return StreamingResponse(events(), 200, headers, "text/event-stream")


def can_decide(approval: Approval, person: Person, now: int) -> bool:
    """Whether this person's yes would bring the approval nearer to one now."""
    try:
        after = rules.voted(approval, person.name, person.roles, True, now)
    except Refused:
        return False
    return len(after.missing) < len(approval.missing)


@asynccontextmanager
async def _naming_others(visit: Visit, name: str) -> AsyncIterator[None]:
    """Who may not decide is told who can. Raises NotEntitled, StoreUnavailable."""
    try:
        yield
    except NotEntitled as error:
        found = visit.app.holds.by_now(await _found(visit, name))
        people = visit.app.settings.admin.people
        others = ", ".join(each.name for each in people if rules.may_decide(found, each.name, each.roles))
        raise NotEntitled(f"{error} {f'Who can: {others}.' if others else 'Nobody else can.'}") from None


@contextmanager
def asking(trouble: str = "The state does not answer. Ask again later.") -> Iterator[None]:
    """While the store of approvals is asked something."""
    try:
        yield
    except StoreUnavailable:
        raise HTTPException(503, trouble) from None


@contextmanager
def refusing() -> Iterator[None]:
    """While something is done that the rules, or the policy, may not allow: why not is the asker's to know."""
    try:
        yield
    except KeyError:
        raise HTTPException(404, _NOT_THERE) from None
    except NotEntitled as error:
        raise HTTPException(403, str(error)) from None
    except Refused as error:
        raise HTTPException(409, str(error)) from None
    except (Unbindable, MalformedCall) as error:
        raise HTTPException(400, str(error)) from None
    except Denied as error:
        raise HTTPException(409, f"The policy denies the call with these arguments: {error}") from None
    except (Undecided, InputRefused) as error:
        raise HTTPException(409, f"With these arguments: {error}") from None
    except (Unauthenticated, UnknownEndpoint, MethodNotAllowed) as error:
        raise HTTPException(409, f"The call could not be sent any more: {error}") from None
    except (EngineUnavailable, BudgetsUnavailable) as error:
        raise HTTPException(503, f"The policy cannot be asked about these arguments now: {error}") from None


def check_ledger(visit: Visit) -> None:
    """What allows something waits for the ledger; what forbids does not. Raises HTTPException."""
    if visit.app.ledger.failure is not None:
        raise HTTPException(503, NOT_RECORDED)


def sent_object(sent: bytes, view: type[View]) -> Mapping[str, Any]:
    """What was sent, its numbers as `Number`; nothing at all is an empty object. Raises HTTPException."""
    try:
        wanted = parsed(sent) if sent.strip() else {}
    except ValueError:
        raise HTTPException(400, "The body is no JSON object whose keys differ.") from None
    if not isinstance(wanted, dict):
        raise HTTPException(400, "The body is no JSON object.")
    names = {field.alias or name: name for name, field in view.model_fields.items()}
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None:
        raise HTTPException(400, f"There is no {unknown[:64]!r} in this request. It takes {', '.join(names)}.")
    return wanted


def said(wanted: Mapping[str, Any]) -> str:
    comment = wanted.get("comment", "")
    if not isinstance(comment, str) or len(comment) > LONGEST_COMMENT or not comment.isprintable():
        raise HTTPException(400, f"`comment` is no text of at most {LONGEST_COMMENT} printable characters.")
    return comment


def _seen(wanted: Mapping[str, Any]) -> int | None:
    version = wanted.get("version")
    if version is None:
        return None
    return _version(version.text if isinstance(version, Number) else "")


def _version(written: str | None) -> int | None:
    if written is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,14}", written, re.ASCII):
        raise HTTPException(400, "`version` is no whole number above 0.")
    return int(written)


def _other(sent: bytes) -> tuple[Mapping[str, Any], bytes]:
    """What was sent, and the arguments in it as they will be. Raises HTTPException."""
    wanted = sent_object(sent, OtherArguments)
    if not isinstance(wanted.get("arguments"), dict):
        raise HTTPException(400, "`arguments` are missing: an object with all of them, the unchanged ones as well.")
    try:
        return wanted, json_text(wanted["arguments"])
    except TypeError:
        raise HTTPException(400, "`arguments` nest too deep, or hold half of a surrogate pair.") from None


def _named(visit: Visit) -> str:
    name: str = visit.request.path_params["id"]
    if not ID.fullmatch(name):
        raise HTTPException(404, _NOT_THERE)
    return name


async def _found(visit: Visit, name: str) -> Approval:
    found = await visit.app.holds.store.get(name)
    if found is None:
        raise HTTPException(404, _NOT_THERE)
    return await visit.app.holds.now(found)


async def _check_version(visit: Visit, name: str, seen: int | None) -> None:
    if seen is None:
        return
    found = await _found(visit, name)
    if found.version != seen:
        raise HTTPException(409, f"It has changed since version {seen}: it is {found.state} now, at {found.version}.")


def _states(written: str | None) -> Collection[State]:
    if written is None:
        return tuple(State)
    try:
        return {State(each) for each in written.split(",")}
    except ValueError:
        raise HTTPException(400, f"`state` is none, nor a list of some: {', '.join(State)}.") from None


def _flag(asked: Mapping[str, str], name: str) -> bool:
    written = asked.get(name, "false")
    if written not in ("true", "false"):
        raise HTTPException(400, f"`{name}` is neither true nor false.")
    return written == "true"


def _wait(written: str | None) -> float:
    if written is None:
        return 0.0
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", written, re.ASCII):
        raise HTTPException(400, "`wait` is no number of seconds.")
    return min(float(written), _LONGEST_WAIT)


def _fits(each: Approval, asked: Mapping[str, str]) -> bool:
    roles = each.missing if each.state is State.PENDING else each.needs
    return asked.get("agent", each.call.agent) == each.call.agent and ("role" not in asked or asked["role"] in roles)


async def _page(visit: Visit, found: Collection[Approval], after: str | None) -> Response:
    items = [await _told(visit, each) for each in found]
    return Response(orjson.dumps({"items": items, "next": after}), media_type="application/json")


async def _one(visit: Visit, found: Approval) -> Response:
    return Response(orjson.dumps(await _told(visit, found)), media_type="application/json")


async def _told(visit: Visit, found: Approval) -> dict[str, Any]:
    mine = can_decide(visit.app.holds.by_now(found), visit.person, visit.app.holds.store.now_ns())
    lacking = list(visit.app.holds.lacking(found)) if found.state is State.PENDING else []
    return {**shown(found), "changes": await _changes(visit, found), "mine": mine, "lacking_roles": lacking}


async def _changes(visit: Visit, found: Approval) -> list[Mapping[str, str | None]] | None:
    if found.instead_of is None:
        return None
    with asking():
        before = await visit.app.holds.store.get(found.instead_of)
    if before is None:
        return None
    bodies = arguments(before.call), arguments(found.call)
    try:
        there_are: list[Change] = (
            changes(*bodies) if sum(map(len, bodies)) <= _LONG else await asyncio.to_thread(changes, *bodies)
        )
    except Unbindable:
        return None
    return [each._asdict() for each in there_are]


_PLACE: Final = "/approvals/{id}"
_VERSION: Final = Parameter("version", "With `wait`: the version that was seen, to wait for another one.")

OPERATIONS = (
    Operation(
        "GET",
        "/approvals",
        "Calls that people decide on, with all that will run, the oldest first.",
        ApprovalList,
        approvals,
        query=(
            Parameter("state", f"One or some of {', '.join(State)}, with commas between; all when absent."),
            Parameter("tenant", "Only those of this tenant."),
            Parameter("agent", "Only those of this agent."),
            Parameter("role", "Only those that still need somebody with this role, or, once decided, needed it."),
            Parameter("mine", "`true`: only those that who asks can bring nearer to a yes now."),
            Parameter("page_size", f"How many at most, up to {_LONGEST_PAGE}; {_PAGE} when absent."),
            AFTER,
        ),
    ),
    Operation(
        "GET",
        "/approvals/stream",
        "Server-sent events: `approval` for each change, in short; `missed` where the list has to be asked for.",
        None,
        stream,
        also="text/event-stream",
    ),
    Operation(
        "GET",
        _PLACE,
        "One call that people decide on.",
        ApprovalView,
        approval,
        query=(Parameter("wait", "Seconds to wait for people, or for what comes of the call, at most 60."), _VERSION),
    ),
    Operation(
        "POST",
        f"{_PLACE}/approve",
        "Say yes. For people with a needed role who are not the ones who ask.",
        ApprovalView,
        _word(True),
        takes=Word,
    ),
    Operation(
        "POST",
        f"{_PLACE}/deny",
        "Say no, for all. For people with a needed role who are not the ones who ask.",
        ApprovalView,
        _word(False),
        takes=Word,
    ),
    Operation(
        "POST",
        f"{_PLACE}/change",
        "Say yes to other arguments: a new approval, of which the policy is asked again. For whoever may approve.",
        ApprovalView,
        change,
        takes=OtherArguments,
    ),
    Operation(
        "POST",
        f"{_PLACE}/cancel",
        "Take back a call that is not decided yet, or a yes that is not used yet.",
        ApprovalView,
        cancel,
        role="admin",
        takes=Comment,
    ),
    Operation(
        "POST",
        f"{_PLACE}/ran",
        "Say of a call that may have run, which nobody knew, that it has: it is done. With a comment.",
        ApprovalView,
        _found_out(True),
        role="admin",
        takes=Comment,
    ),
    Operation(
        "POST",
        f"{_PLACE}/not-run",
        "Say of a call that may have run, which nobody knew, that it has not: it is revoked. With a comment.",
        ApprovalView,
        _found_out(False),
        role="admin",
        takes=Comment,
    ),
)
