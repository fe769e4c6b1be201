"""Tools of MCP servers, as they are defined now and as people have accepted them; and a person's word on one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.admin.approvals import check_ledger, sent_object
from gateway.admin.operation import Operation, Parameter, View, Visit, body, shown
from gateway.mcp.catalogue import Catalogue, Offered
from gateway.mcp.definitions import DefinitionsUnavailable
from gateway.mcp.server import McpServer
from gateway.problems import TargetFailed
from policies.binding import Unbindable, changes
from policies.definitions import Pin, StoreUnavailable, Word

_SECOND: Final = 1_000_000_000

_Standing = Literal["accepted", "unknown", "changed", "refused", "unusable"]

_NOT_KNOWN: Final = "The state does not answer; whether anything has changed is not known. Look, and ask again."
_OUTRUN: Final = "Somebody else has said something of this tool, just now. Look, and ask again."


class ToolView(View):
    """A tool of an MCP server."""

    server: str
    tool: str
    standing: _Standing = Field(
        description="`accepted`: agents may use it as far as the policy allows. `unknown`: nobody has asked for it "
        "yet, or it is not among the configured pins. `changed`, `refused`, `unusable`: it is hidden from agents, and "
        "calls are refused."
    )
    definition: str | None = Field(description="SHA-256 of its definition now; null where there is none.")
    accepted: str | None = Field(description="SHA-256 of the definition that was said of last; null where nothing was.")
    by: str | None = Field(description="Who has said so; null where nobody has, and it was taken as it was seen first.")
    said_at: str | None = Field(description="When that was said or taken, RFC 3339.")
    since: str | None = Field(
        description="Since when it is accepted or refused; of a changed one, when this gateway has first seen the new "
        "definition, at the earliest when it started. RFC 3339; null where it is not known."
    )
    why: str | None = Field(description="Why its definition cannot be used; null where it can.")


class ToolList(View):
    items: list[ToolView]
    next: str | None = None
    silent: list[str] = Field(description="Servers that do not say which tools they have.")


class Difference(View):
    """One value of the definition that is another now, as JSON texts; null where there is none."""

    pointer: str
    old: str | None
    new: str | None


class ToolDetail(ToolView):
    now: dict[str, Any] | None = Field(description="The definition as its server gives it now.")
    before: dict[str, Any] | None = Field(description="The definition that was said of last.")
    changes: list[Difference] = Field(description="In what they differ.")


class Verdict(View):
    """A person's word on the definition that they have seen."""

    definition: str = Field(default="", description="Its SHA-256, as it was shown; another one by now is not accepted.")


async def tools(visit: Visit) -> Response:
    """Asks every server, for what it says now."""
    wanted = visit.query.get("server")
    found: list[ToolView] = []
    silent: list[str] = []
    for name, server in _servers(visit).items():
        if wanted not in (None, name):
            continue
        try:
            offered = await server.catalogue.tools()
        except TargetFailed:
            silent.append(name)
            offered = {}
        pins = visit.app.definitions.pins(name)
        for tool in sorted(offered.keys() | pins.keys()):
            found.append(ToolView.model_validate(_facts(visit, server, tool, offered.get(tool), pins.get(tool))))
    if wanted is not None and wanted not in _servers(visit):
        raise HTTPException(404, "There is no such MCP server; GET /tools lists the tools of all.")
    return shown(ToolList(items=found, silent=silent))


async def tool(visit: Visit) -> Response:
    server, name, offered, pin = await _found(visit)
    return shown(await _detail(visit, server, name, offered, pin))


async def accept(visit: Visit) -> Response:
    return await _say(visit, "accepted")


async def refuse(visit: Visit) -> Response:
    return await _say(visit, "refused")


async def _say(visit: Visit, word: Word) -> Response:
    """Durable first, then in force here, then on record and answered."""
    server, name, offered, pin = await _found(visit)
    settings, who = server.settings, visit.person
    if settings.accepted_by not in who.roles:
        raise HTTPException(403, f"This needs the role `{settings.accepted_by}`, which {who.name} does not have.")
    if settings.definitions != "first_seen":
        raise HTTPException(
            409, f"The setting `definitions` of {settings.name} is {settings.definitions}: change the configuration."
        )
    if word == "accepted":
        check_ledger(visit)  # what refuses a tool does not wait for it
    definition = offered.definition if offered is not None else None
    seen = sent_object(await body(visit.request), Verdict).get("definition")
    digest = definition.digest if definition is not None else ""
    if word == "accepted" and definition is None:
        raise HTTPException(409, "There is no definition of this tool that could be accepted.")
    if word == "accepted" and seen != digest:
        raise HTTPException(409, "The definition is another one by now. Look, and ask again.")
    result = "unknown"
    try:
        text = definition.text if definition is not None else b""
        if word == "refused" and pin is not None:  # what was accepted before stays to be compared with
            digest, text = pin.digest, await visit.app.definitions.text(settings.name, name) or text
        said = await visit.app.definitions.say(settings.name, name, word, digest, text, who.name, pin)
        if said is None:
            result = "refused"
            raise HTTPException(409, _OUTRUN)
        result = "ok"
    except StoreUnavailable:
        raise HTTPException(503, _NOT_KNOWN) from None
    finally:
        visit.app.ledger.note(
            "tool",
            {
                "event": word,
                "who": who.name,
                "server": settings.name,
                "tool": name,
                "digest": digest,
                "old": pin.digest if pin is not None else None,
                "result": result,
            },
        )
        visit.app.ledger.flush()
    return shown(await _detail(visit, server, name, offered, said))


def _servers(visit: Visit) -> dict[str, McpServer]:
    toolbox = visit.app.pipeline.assembly.toolbox
    return {each.settings.name: each for each in toolbox if isinstance(each, McpServer)}


async def _found(visit: Visit) -> tuple[McpServer, str, Offered | None, Pin | None]:
    """What a path names. Raises HTTPException."""
    server = _servers(visit).get(visit.request.path_params["server"])
    if server is None:
        raise HTTPException(404, "There is no such MCP server; GET /tools lists the tools of all.")
    name = visit.request.path_params["tool"]
    offered = await _offered(server.catalogue, name)
    try:
        pin = visit.app.definitions.pin(server.settings.name, name)
    except DefinitionsUnavailable as error:
        raise HTTPException(503, str(error)) from None
    if offered is None and pin is None:
        raise HTTPException(404, "The server has no such tool; GET /tools lists those that it has.")
    return server, name, offered, pin


async def _offered(catalogue: Catalogue, name: str) -> Offered | None:
    """A tool as it is now; None also where its server does not answer."""
    try:
        return (await catalogue.tools()).get(name)
    except TargetFailed:
        return None


def _facts(visit: Visit, server: McpServer, name: str, offered: Offered | None, pin: Pin | None) -> dict[str, Any]:
    definition = offered.definition if offered is not None else None
    try:
        stands: str = (
            server.catalogue.standing(definition, visit.app.definitions) if definition is not None else "unusable"
        )
    except DefinitionsUnavailable as error:
        raise HTTPException(503, str(error)) from None
    if pin is not None and pin.word == "refused":
        stands = "refused"
    begins: dict[str, int | None] = {"accepted": pin.at, "refused": pin.at} if pin is not None else {}
    if definition is not None and stands == "changed":
        begins["changed"] = visit.app.definitions.changed_at(server.settings.name, name, definition.digest)
    return {
        "server": server.settings.name,
        "tool": name,
        "standing": stands,
        "definition": definition.digest if definition is not None else None,
        "accepted": pin.digest or None if pin is not None else None,
        "by": pin.by or None if pin is not None else None,
        "said_at": _rfc_3339(pin.at) if pin is not None else None,
        "since": _rfc_3339(at) if (at := begins.get(stands)) is not None else None,
        "why": None
        if definition is not None
        else offered.why
        if offered is not None
        else "its server does not offer it",
    }


async def _detail(visit: Visit, server: McpServer, name: str, offered: Offered | None, pin: Pin | None) -> ToolDetail:
    try:
        before = await visit.app.definitions.text(server.settings.name, name) or None
    except StoreUnavailable:
        raise HTTPException(503, _NOT_KNOWN) from None
    now = offered.definition.text if offered is not None and offered.definition is not None else None
    return ToolDetail.model_validate(
        {
            **_facts(visit, server, name, offered, pin),
            "now": orjson.loads(now) if now is not None else None,
            "before": orjson.loads(before) if before is not None else None,
            "changes": _changes(before or b"{}", now or b"{}"),
        }
    )


def _changes(before: bytes, now: bytes) -> list[dict[str, str | None]]:
    try:
        return [each._asdict() for each in changes(before, now)]
    except Unbindable:
        return [{"pointer": "", "old": before.decode(), "new": now.decode()}]


def _rfc_3339(at: int) -> str:
    return f"{datetime.fromtimestamp(at // _SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"


OPERATIONS = (
    Operation(
        "GET",
        "/tools",
        "Tools of MCP servers, and how their definitions stand.",
        ToolList,
        tools,
        query=(Parameter("server", "Only those of this server."),),
    ),
    Operation(
        "GET",
        "/tools/{server}/{tool}",
        "One tool: its definition now, what was accepted, the difference.",
        ToolDetail,
        tool,
    ),
    Operation(
        "POST",
        "/tools/{server}/{tool}/accept",
        "Let agents use a tool by the definition that it has now.",
        ToolDetail,
        accept,
        takes=Verdict,
    ),
    Operation(
        "POST",
        "/tools/{server}/{tool}/refuse",
        "Hide a tool from agents, whatever it says of itself.",
        ToolDetail,
        refuse,
        takes=Verdict,
    ),
)
