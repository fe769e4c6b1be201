"""What a browser can ask the console for, and what it is answered with.

A page is rendered here and shows what is; whatever is to be done goes to the operation of the admin API that does it,
with the person who is logged in, so that both have one set of rules. The links in messages, /approvals/ID, lead
browsers here and programs to the API.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import math
import re
import secrets
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from gateway.admin import approvals as api
from gateway.admin import grants
from gateway.admin.news import MISSED
from gateway.admin.operation import Desk, Operation, Visit, body
from gateway.approval_view import Number, json_text, parsed, visible
from gateway.console import guard, recent, view
from gateway.console.login import LASTS, Notice, Session, Sessions, Tries
from gateway.console.pending import ENOUGH, Pending, in_order
from gateway.identity import Person
from policies import approvals as rules
from policies.approvals import Approval, Refused, State
from policies.binding import arguments
from policies.grants import NO_SESSION
from policies.money import usd_text

PAGE: Final = 100
"""Calls on one page of a list."""
HOME: Final = "/console/approvals"

_HERE: Final = Path(__file__).parent
_FILES: Final = {"style.css": "text/css", "console.js": "text/javascript"}
_COOKIE: Final = "weighbridge_session"
_LOGIN: Final = "weighbridge_login"
_LIVE: Final = "x-weighbridge-live"
"""Header of a page's own look at what is new: it takes no notice away."""
_LONGEST_FORM: Final = 1536 * 1024
"""Bytes: what can be changed on a page takes up to three times its length, and each end of a line six."""
_MOST_FIELDS: Final = 100
_LONGEST_TOKEN: Final = 4096
_LONG: Final = 64 * 1024
"""Bytes of arguments that are shown in a few milliseconds: what is longer is for a thread."""
_SIGN_OF_LIFE: Final = 15.0
_SECOND: Final = 1_000_000_000
_WITHIN: Final = re.compile(r"/console/[A-Za-z0-9/_-]*", re.ASCII)
_LISTS: Final = {
    "pending": State.PENDING,
    "approved": State.APPROVED,
    "running": State.CONSUMED,
    "unknown": State.UNKNOWN,
    "ended": None,
}
"""Calls in one state each; and those with which it is over."""
_WHOLE: Final = re.compile("[1-9][0-9]{0,8}", re.ASCII)
_AMOUNT: Final = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?", re.ASCII)
_OPERATIONS: Final = {(each.method, each.path): each for each in (*api.OPERATIONS, *grants.OPERATIONS)}

_NO_SUCH: Final = "No approval has this id, or it was long ago."
_DONE: Final = {
    "approve": "Your yes is recorded.",
    "deny": "Denied. The agent is told why.",
    "cancel": "Taken back.",
    "ran": "Recorded: it has run.",
    "not-run": "Recorded: it has not run, and the identical call asks people anew.",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of somebody who is logged in; `form` is empty where nothing was sent."""

    request: Request
    session: Session
    person: Person
    form: Mapping[str, list[str]]

    @property
    def id(self) -> str:
        found: str = self.request.path_params["id"]
        if not api.ID.fullmatch(found):
            raise HTTPException(404, _NO_SUCH)
        return found

    def said(self, name: str) -> str:
        return self.form.get(name, [""])[0].strip()

    @property
    def comment(self) -> str:
        """In one line, as it is recorded."""
        return " ".join(self.said("comment").split())


class ForBrowsers(Route):
    """A path that programs have, too: it is the console's for whoever wants a page and shows no token."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        headers = dict(scope.get("headers", ()))
        wants_page = b"text/html" in headers.get(b"accept", b"") and b"authorization" not in headers
        return super().matches(scope) if wants_page and scope.get("method") in ("GET", "HEAD") else (Match.NONE, {})


def routes(desk: Desk) -> list[BaseRoute]:
    """The console's, to stand before those of the API."""
    console = Console(desk)
    opened, asked, changing = console.opened, console.asked, console.changing
    one = f"{HOME}/{{id}}"
    return [
        Route("/", opened(console.doorstep)),
        ForBrowsers("/approvals", opened(console.doorstep)),
        ForBrowsers("/approvals/{id}", opened(console.doorstep)),
        Route("/console", opened(console.doorstep)),
        Route("/console/login", opened(console.ask_who)),
        Route("/console/login", opened(console.log_in), methods=["POST"]),
        Route("/console/logout", changing(console.log_out), methods=["POST"]),
        Route("/console/events", opened(console.events)),
        Route(HOME, asked(console.listed)),
        Route("/console/grants", asked(console.granted)),
        Route("/console/grants/{id}/revoke", changing(console.revoke), methods=["POST"]),
        Route(one, asked(console.one)),
        Route(f"{one}/change", changing(console.change), methods=["POST"]),
        Route(f"{one}/grant", changing(console.grant), methods=["POST"]),
        Route(f"{one}/{{verb}}", changing(console.say), methods=["POST"]),
        Route("/console/{file}", opened(console.file)),
        Route("/console/{rest:path}", opened(console.nothing)),
    ]


class Console:
    """The pages of one gateway."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.holds = desk.app.holds
        self.sessions = Sessions()
        self.tries = Tries()
        self.pending = Pending(desk.app.holds.store)

    # Who may ask

    def opened(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """For everybody, under a name that the listener answers to."""

        async def endpoint(request: Request) -> Response:
            try:
                self._check_host(request)
                answer = await handle(request)
            except HTTPException as error:
                answer = self._problem(error, None)
            answer.headers.update(guard.HEADERS)
            return answer

        return endpoint

    def asked(self, handle: Callable[[Asked], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """For people, who are asked who they are where they have not said it yet."""

        async def endpoint(request: Request) -> Response:
            found = self._session(request)
            if found is None:
                return self._to_login(request)
            try:
                return await handle(Asked(request, *found, {}))
            except HTTPException as error:
                return self._problem(error, found)

        return self.opened(endpoint)

    def changing(self, handle: Callable[[Asked], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """For people, with a form of a page that they have."""

        async def endpoint(request: Request) -> Response:
            found = self._session(request)
            if found is None:
                return self._to_login(request)
            session, person = found
            try:
                form = await self._form(request)
                if not session.has_sent(form.get("form", [""])[0]):
                    raise HTTPException(403, "This form is not of your session. Open the page again.")
                return await handle(Asked(request, session, person, form))
            except HTTPException as error:
                return self._problem(error, found)

        return self.opened(endpoint)

    def _check_host(self, request: Request) -> None:
        settings = self.desk.app.settings
        names = {settings.admin.listen.host.lower()}
        if settings.approvals.link is not None:
            names.add(guard.name_in(settings.approvals.link) or "")
        if not guard.answers_to(request.headers.get("host"), names - {""}):
            raise HTTPException(
                421, "The console does not answer to this name. `approvals.link` gives the one that people use."
            )

    def _session(self, request: Request) -> tuple[Session, Person] | None:
        people = self.desk.app.pipeline.assembly.people
        return self.sessions.of(request.cookies.get(_named(_COOKIE, request)), people)

    async def _form(self, request: Request) -> Mapping[str, list[str]]:
        if not guard.is_ours(request.headers, self.desk.app.settings.approvals.link):
            raise HTTPException(403, "This form was sent from another page than ours.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise HTTPException(415, "This is no form of ours.")
        sent = await body(request, _LONGEST_FORM)
        try:
            return urllib.parse.parse_qs(
                sent.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
            )
        except ValueError:
            raise HTTPException(400, "This is no form of ours.") from None

    def _to_login(self, request: Request) -> Response:
        """A link from elsewhere comes without our cookie: our own page then asks again, with it."""
        place = request.url.path
        if request.method == "GET" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return self._page("step.html", place=place)
        wanted = place if request.method in ("GET", "HEAD") else HOME
        return _see(f"/console/login?to={urllib.parse.quote(wanted)}")

    # Coming and going

    async def doorstep(self, request: Request) -> Response:
        """Leads to the page of the same call. Not by a redirect: a browser that follows a link from elsewhere would
        then leave its cookie out, and ask people who they are though they have said it."""
        name = request.path_params.get("id")
        if name is not None and not api.ID.fullmatch(name):
            raise HTTPException(404, _NO_SUCH)
        return self._page("step.html", place=f"{HOME}/{name}" if name is not None else HOME)

    async def ask_who(self, request: Request) -> Response:
        if self._session(request) is not None:
            return _see(_within(request.query_params.get("to", "")))
        return self._login(request, _within(request.query_params.get("to", "")))

    async def log_in(self, request: Request) -> Response:
        form = {name: values[0] for name, values in (await self._form(request)).items()}
        to, cookie = _within(form.get("to", "")), request.cookies.get(_named(_LOGIN, request), "")
        if not cookie or not hmac.compare_digest(cookie.encode(), form.get("form", "").encode()):
            return self._login(request, to, "This page was open for too long. Try again.", 403)
        address = request.client.host if request.client is not None else ""
        pause = self.tries.pause(address)
        if pause > 0:
            answer = self._login(request, to, f"Too many wrong tokens. Wait {view.left(pause + 1)}.", 429)
            answer.headers["retry-after"] = str(math.ceil(pause))
            return answer
        token = form.get("token", "").strip()[:_LONGEST_TOKEN]
        session = self.sessions.begin(self.desk.app.pipeline.assembly.people, token)
        if session is None:
            self.tries.failed(address)
            return self._login(request, to, "Nobody here has this token.", 401)
        answer = _see(to)
        self._set(answer, request, _COOKIE, session.id, int(LASTS))
        self._set(answer, request, _LOGIN, "", 0)
        return answer

    async def log_out(self, asked: Asked) -> Response:
        self.sessions.end(asked.session)
        answer = _see("/console/login")
        self._set(answer, asked.request, _COOKIE, "", 0)
        return answer

    def _login(self, request: Request, to: str, wrong: str = "", status: int = 200) -> Response:
        form = secrets.token_urlsafe(32)
        answer = self._page("login.html", status, to=to, wrong=wrong, form=form)
        self._set(answer, request, _LOGIN, form, 3600)
        return answer

    def _set(self, answer: Response, request: Request, name: str, value: str, seconds: int) -> None:
        encrypted = guard.is_encrypted(
            request.url.scheme, request.headers.get("host"), self.desk.app.settings.approvals.link
        )
        answer.set_cookie(
            _named(name, request),
            value,
            max_age=seconds,
            path="/console",
            secure=encrypted,
            httponly=True,
            samesite="strict",
        )

    # What is shown

    async def listed(self, asked: Asked) -> Response:
        which = asked.request.query_params.get("state", "pending")
        if which not in _LISTS:
            raise HTTPException(404, "There is no such list.")
        seen = self.pending.changes
        with api.asking():
            state = _LISTS[which]
            held = await self.pending.listed(state) if state is not None else await self.pending.ended()
            unknown = len(await self.pending.listed(State.UNKNOWN))
        now = self.holds.store.now_ns()
        if which == "pending":
            held = [each for each in held if each.approval.decide_by > now]
        written = asked.request.query_params.get("page", "1")
        wanted = int(written) if _WHOLE.fullmatch(written) else 1

        def answer() -> Response:
            found = (
                in_order(held, lambda each: api.can_decide(self.holds.by_now(each), asked.person, now))
                if state is not None
                else [(each, False) for each in held]
            )
            pages = max(1, math.ceil(len(found) / PAGE))
            page = min(wanted, pages)
            return self._answer(
                asked,
                "list.html",
                which=which,
                lists=list(_LISTS),
                items=found[(page - 1) * PAGE : page * PAGE],
                total=len(found),
                mine=sum(mine for _, mine in found),
                page=page,
                pages=pages,
                unknown=unknown,
                enough=ENOUGH,
                now=now,
                seen=seen,
                key=_key(which, page, unknown, [(each.approval.id, each.approval.version) for each, _ in found]),
                usd=usd_text,
            )

        return await asyncio.to_thread(answer) if len(held) > PAGE else answer()

    async def one(self, asked: Asked) -> Response:
        seen = self.pending.changes
        found = await self._found(asked.id)
        shown = {"seen": seen, **await self._shown(asked, found)}
        if len(found.call.body) > _LONG:
            return await asyncio.to_thread(self._answer, asked, "call.html", **shown)
        return self._answer(asked, "call.html", **shown)

    async def _shown(self, asked: Asked, found: Approval) -> dict[str, Any]:
        app, call, now = self.desk.app, found.call, self.holds.store.now_ns()
        why_not = ""
        try:
            rules.voted(self.holds.by_now(found), asked.person.name, asked.person.roles, True, now)
        except Refused as error:
            why_not = str(error)
        before, shown = await self._before(found), await _aside(found, view.body_of)
        people = ((each.name, each.roles) for each in app.settings.admin.people)
        can_grant = (
            not why_not
            and view.has_arguments(found)
            and len(found.needs) == 1
            and found.needs[0] in asked.person.roles
            and not any(each.no_grant for each in app.settings.tools if each.name == call.target)
        )
        edited = await _aside(found, view.editable) if not why_not else None
        return {
            "approval": found,
            "call": call,
            "state": view.STATES[found.state],
            "now": now,
            "body": shown,
            "why_not": why_not,
            "adds": not why_not and api.can_decide(self.holds.by_now(found), asked.person, now),
            "wanted": view.still_wanted(found, people),
            "differences": before,
            "edited": edited,
            "members": await _aside(found, view.members) if can_grant else (),
            "can_grant": can_grant,
            "can_cancel": "admin" in asked.person.roles and found.state in (State.PENDING, State.APPROVED),
            "can_resolve": "admin" in asked.person.roles and found.state is State.UNKNOWN,
            "lacking": app.holds.lacking(found) if found.state is State.PENDING else (),
            "recent": await asyncio.to_thread(recent.calls_of, app.ledger.path, call.tenant, call.agent, call.session),
            "cost": usd_text(call.cost) if call.cost is not None else None,
            "query": call.query.decode("latin-1"),
            "described": view.described(app.pipeline.assembly.toolbox.described(call)),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.headers],
            "look_alikes": [
                *view.look_alikes(
                    [call.agent, call.tenant, call.target, call.operation, call.path, call.session or ""]
                ),
                *shown.look_alikes,
            ],
            "decide_key": _key(found.state, why_not, found.missing if not why_not else ()),
        }

    async def _found(self, name: str) -> Approval:
        with api.asking():
            found = await self.holds.store.get(name)
            if found is None:
                raise HTTPException(404, _NO_SUCH)
            return await self.holds.now(found)

    async def _before(self, found: Approval) -> Any:
        """What a person has changed of the call that this one stands for; None where nothing is, or it is forgotten."""
        if found.instead_of is None:
            return None
        with api.asking():
            before = await self.holds.store.get(found.instead_of)
        if before is None:
            return None
        return await _aside(found, lambda each: view.differences(arguments(before.call), arguments(each.call)))

    async def granted(self, asked: Asked) -> Response:
        with api.asking():
            found = sorted(await self.holds.store.grants(), key=lambda grant: grant.expires)
        where = {each.id: orjson.dumps(each.where).decode() for each in found}
        return self._answer(
            asked, "grants.html", grants=found, where=where, now=self.holds.store.now_ns(), usd=usd_text
        )

    async def events(self, request: Request) -> Response:
        """What happens to approvals, as it happens, for as long as the session lasts.

        It begins with `missed` where something has happened since the page was rendered, which says up to when it has
        `seen` it.
        """
        news, app = self.desk.news, self.desk.app
        if self._session(request) is None:
            return Response(None, 401)
        if news.full:
            return Response(None, 503)

        async def told() -> AsyncIterator[bytes]:
            with news.followed() as follower:
                yield b"retry: 1000\n\n"
                if request.query_params.get("seen") != str(self.pending.changes):
                    yield MISSED
                while not app.ending.is_set():
                    event = await follower.next(_SIGN_OF_LIFE)
                    if self._session(request) is None or (event is None and app.ending.is_set()):
                        return
                    yield event if event is not None else b": nothing new\n\n"

        return StreamingResponse(told(), 200, {"x-accel-buffering": "no"}, "text/event-stream")

    async def file(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in _FILES:
            return await self.nothing(request)
        return Response(_file(name), 200, media_type=_FILES[name])

    async def nothing(self, request: Request) -> Response:
        raise HTTPException(404, "There is no such page.")

    # What is done

    async def say(self, asked: Asked) -> Response:
        """A yes, a no, or that it is taken back."""
        verb, comment = asked.request.path_params["verb"], asked.comment
        if verb not in _DONE:
            raise HTTPException(404, "There is no such page.")
        try:
            await self._do(asked, "POST", f"/approvals/{{id}}/{verb}", {"id": asked.id}, {"comment": comment})
        except HTTPException as error:
            return self._back(asked, Notice(f"Nothing was done. {error.detail}", bad=True, comment=comment))
        if verb == "deny" and not comment:
            return self._back(asked, Notice("Denied. You gave no reason: the agent is told that it may not, not why."))
        return self._back(asked, Notice(_DONE[verb]))

    async def change(self, asked: Asked) -> Response:
        """Shows what would be another first; then the policy is asked about it."""
        found, text, comment = await self._found(asked.id), asked.said("arguments"), asked.comment
        wrong, differences = "", None
        try:
            value = parsed(text)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
            sent = json_text(value)
            differences = await asyncio.to_thread(view.differences, arguments(found.call), sent)
            if not differences:
                wrong = (
                    "These are the arguments that it has." if differences is not None else "This cannot be compared."
                )
        except (ValueError, TypeError) as error:
            wrong = f"This is no JSON object that can be sent: {error}."
        if not wrong and asked.said("sure") == "yes":
            try:
                told = await self._do(
                    asked, "POST", "/approvals/{id}/change", {"id": asked.id}, {"arguments": value, "comment": comment}
                )
            except HTTPException as error:
                wrong = f"Nothing was done. {error.detail}"
            else:
                asked.session.notice = Notice("Your yes to these arguments is recorded.")
                return _see(f"{HOME}/{told['id']}")
        return self._answer(
            asked,
            "change.html",
            400 if wrong else 200,
            approval=found,
            call=found.call,
            text=text,
            comment=comment,
            wrong=visible(wrong),
            differences=differences,
        )

    async def grant(self, asked: Asked) -> Response:
        found = await self._found(asked.id)
        uses, cost = asked.said("uses"), asked.said("cost")
        if (uses and not _WHOLE.fullmatch(uses)) or (cost and not _AMOUNT.fullmatch(cost)):
            return self._back(asked, Notice("Uses are a whole number, the cost an amount in dollars.", bad=True))
        wanted: dict[str, Any] = {
            "from": found.id,
            "session": found.call.session or NO_SESSION if asked.said("session") != "all" else None,
            "expires_in": asked.said("for"),
            "max_uses": Number(uses) if uses else None,
            "max_cost_usd": Number(cost) if cost else None,
            "comment": asked.comment,
        }
        try:
            if view.members(found):
                wanted["where"] = view.pinned(found, asked.form.get("pinned", []))
            told = await self._do(asked, "POST", "/grants", {}, wanted)
        except HTTPException as error:
            return self._back(asked, Notice(f"Nothing was done. {error.detail}", bad=True))
        said = f"Such calls are allowed from now on ({told['id']}). This one still waits for your word."
        return self._back(asked, Notice(said))

    async def revoke(self, asked: Asked) -> Response:
        try:
            await self._do(asked, "DELETE", "/grants/{id}", {"id": asked.request.path_params["id"]}, None)
            asked.session.notice = Notice("Ended: nothing more is allowed by it.")
        except HTTPException as error:
            asked.session.notice = Notice(f"Nothing was done. {error.detail}", bad=True)
        return _see("/console/grants")

    async def _do(self, asked: Asked, method: str, path: str, names: Mapping[str, str], sent: Any) -> Any:
        """Asks the API as this person. Raises HTTPException as it does."""
        operation: Operation = _OPERATIONS[method, path]
        if operation.role is not None and operation.role not in asked.person.roles:
            raise HTTPException(403, f"This needs the role `{operation.role}`.")
        content = json_text(sent) if sent is not None else b""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        scope = {**asked.request.scope, "method": method, "path_params": dict(names), "query_string": b""}
        scope["headers"] = [(b"content-length", b"%d" % len(content))]
        answer = await operation.handle(Visit(self.desk, Request(scope, receive), asked.person))
        return orjson.loads(answer.body)

    # Answers

    def _back(self, asked: Asked, notice: Notice) -> Response:
        asked.session.notice = notice
        return _see(f"{HOME}/{asked.id}")

    def _answer(self, asked: Asked, template: str, status: int = 200, **facts: Any) -> Response:
        """A page of somebody who is logged in, with what is to be told once."""
        notice = None
        if _LIVE not in asked.request.headers:
            notice, asked.session.notice = asked.session.notice, None
        return self._page(template, status, person=asked.person.name, form=asked.session.form, notice=notice, **facts)

    def _page(self, template: str, status: int = 200, **facts: Any) -> Response:
        text = _templates().get_template(template).render(facts)
        return Response(text.encode("utf-8", "replace"), status, media_type="text/html")

    def _problem(self, error: HTTPException, found: tuple[Session, Person] | None) -> Response:
        title = HTTPStatus(error.status_code).phrase
        if found is None:
            return self._page(
                "problem.html", error.status_code, title=title, detail=error.detail, person=None, notice=None
            )
        session, person = found
        return self._page(
            "problem.html",
            error.status_code,
            title=title,
            detail=error.detail,
            person=person.name,
            form=session.form,
            notice=None,
        )


@functools.cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters.update(seen=lambda value: visible(str(value)), left=view.left, moment=view.moment)
    found.globals["version"] = hashlib.sha256(b"".join(map(_file, _FILES))).hexdigest()[:16]
    return found


@functools.cache
def _file(name: str) -> bytes:
    return (_HERE / "static" / name).read_bytes()


async def _aside(found: Approval, work: Callable[[Approval], Any]) -> Any:
    """What is worked out of a body: of a long one in a thread."""
    return await asyncio.to_thread(work, found) if len(found.call.body) > _LONG else work(found)


def _key(*facts: object) -> str:
    """Changes when one of these does."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _named(cookie: str, request: Request) -> str:
    """Cookies know no ports: two gateways of one host would take each other's away."""
    port = request.url.port
    return f"{cookie}_{port}" if port is not None else cookie


def _within(place: str) -> str:
    return place if _WITHIN.fullmatch(place) and not place.startswith("/console/log") else HOME


def _see(place: str) -> Response:
    return RedirectResponse(place, 303)
