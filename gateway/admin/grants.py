"""Calls that people allow beforehand: for one agent, one tool and arguments that fit, for some time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import orjson
from pydantic import ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adapters.errors import MalformedCall
from adapters.mcp.messages import ACTS
from config.settings import AgentSettings, seconds
from gateway.admin.approvals import ID as APPROVAL
from gateway.admin.approvals import asking, check_ledger, said, sent_object
from gateway.admin.operation import AFTER, Operation, Parameter, Usd, View, Visit, body, exact, page_size
from gateway.approval_view import Number, json_text
from gateway.callids import CallIds
from gateway.mcp.definitions import DefinitionRefused, DefinitionsUnavailable
from gateway.mcp.server import McpServer
from gateway.problems import TargetFailed
from policies import grants as rules
from policies.approval_store import StoreUnavailable
from policies.approvals import Approval, NotEntitled, Refused, State
from policies.binding import arguments
from policies.grants import NO_SESSION, Grant
from policies.masks import STARS, Mask, segments
from policies.money import MOST, NANO, nano, usd_text

_PAGE: Final = 100
_LONGEST_PAGE: Final = 1000
_MOST_USES: Final = 1_000_000
_LONGEST_NAME: Final = 256
_SECOND: Final = 1_000_000_000
_NOT_KNOWN: Final = "The state does not answer; whether anything has changed is not known. GET /grants tells."
_NOT_THERE: Final = "No grant has this id, or it has ended. GET /grants lists those that last."

_ids: Final = CallIds()


class GrantView(View):
    """Calls that are allowed beforehand. Times are seconds since the epoch."""

    id: str
    tenant: str
    agent: str
    session: str | None = Field(description="Null for any, and none; empty for calls without a session only.")
    protocol: str
    target: str
    operation: str
    where: dict[str, Any] = Field(description="Values that arguments have to have, by JSON Pointer.")
    roles: list[str] = Field(description="The slots of an approval that it fills.")
    by: list[str] = Field(description="Who has made it.")
    comment: str
    created: float
    expires: float
    max_uses: int | None
    uses: int
    max_cost_usd: Usd | None
    cost_usd: Usd
    definition: str = Field(
        description="SHA-256 of the definition that its MCP tool has to have; empty where there is none."
    )


class GrantList(View):
    items: list[GrantView]
    next: str | None = Field(description="`after` of the next page; null at the end.")


class NewGrant(View):
    """What is to be allowed. With `from`, what is left out is taken from an approval, its very arguments as well;
    without it `where` or `any_arguments` is needed."""

    model_config = ConfigDict(populate_by_name=True)

    source: str | None = Field(default=None, alias="from", description="An approval's id.")
    agent: str | None = None
    tenant: str | None = Field(default=None, description="Can be left out: an agent has one.")
    session: str | None = Field(
        default=None,
        description="Any, and none, when null, or absent without `from`; empty for calls without a session only.",
    )
    protocol: str | None = Field(
        default=None, description="Can be left out for a configured tool without `offer_as_mcp`."
    )
    target: str | None = Field(default=None, description="The tool, or the model.")
    operation: str | None = None
    where: dict[str, Any] | None = Field(
        default=None, description="Values that arguments have to have, by JSON Pointer; {} for any arguments."
    )
    any_arguments: bool = Field(default=False, description="True for any arguments: the same as a `where` of {}.")
    role: str | None = Field(default=None, description="The slot to fill; can be left out where only one can be meant.")
    expires_in: float | str = Field(description="Seconds, or as 15m, 1h.")
    max_uses: int | None = Field(default=None, description="One of the two limits is needed.")
    max_cost_usd: float | None = None
    comment: str = Field(default="", description="Why, for the record.", max_length=500)


class Revoked(View):
    id: str
    revoked: bool


async def grants(visit: Visit) -> Response:
    """One page of those that last, the oldest first."""
    asked = visit.query
    most, after = page_size(asked, _PAGE, _LONGEST_PAGE), asked.get("after", "")
    with asking():
        there_are = await visit.app.holds.store.grants()
    found = [
        each
        for each in sorted(there_are, key=lambda grant: grant.id)
        if each.id > after
        and asked.get("agent", each.agent) == each.agent
        and asked.get("tenant", each.tenant) == each.tenant
    ]
    items = [_shown(each) for each in found[:most]]
    return _answer({"items": items, "next": found[most - 1].id if len(found) > most else None})


async def grant(visit: Visit) -> Response:
    return _answer(_shown(await _found(visit)))


async def make(visit: Visit) -> Response:
    """In the store first, then on record, then answered; every gateway goes by it within a second."""
    app, person = visit.app, visit.person
    wanted = sent_object(await body(visit.request), NewGrant)
    comment, role = said(wanted), _name(wanted, "role")
    source = await _source(visit, wanted)
    facts = _facts(wanted, source)
    agent = _agent(app.settings.agents, facts.agent, facts.tenant)
    facts = replace(facts, tenant=agent.tenant, protocol=facts.protocol or _protocol(visit, facts.target))
    now = app.holds.store.now_ns()
    fresh = Grant(
        f"grt_{_ids.next(now)}",
        facts.tenant,
        facts.agent,
        facts.session,
        facts.protocol,
        facts.target,
        facts.operation,
        facts.where,
        facts.definition,
        (_slot(role, person.roles, source),),
        (person.name,),
        now,
        now + _length(wanted),
        _count(wanted),
        _cost(wanted),
        comment=comment,
    )
    try:
        rules.check(
            fresh,
            {person.name: person.roles},
            requesters=(agent.name, *([agent.owner] if agent.owner else [])),
            longest=int(app.settings.approvals.longest_grant * _SECOND),
            no_grant=any(each.no_grant for each in app.settings.tools if each.name == fresh.target),
        )
    except NotEntitled as error:
        raise HTTPException(403, str(error)) from None
    except Refused as error:
        raise HTTPException(400, str(error)) from None
    if source is None and fresh.protocol == "mcp":
        fresh = replace(fresh, definition=await _definition(visit, fresh.target, fresh.operation))
    check_ledger(visit)
    async with visit.desk.changing:
        result = "unknown"
        try:
            with asking(_NOT_KNOWN):
                await app.holds.store.grant(fresh)
            result = "ok"
        finally:
            _note(visit, "made", fresh, result, source.id if source is not None else None)
        if source is not None:
            fresh = await _say_yes(visit, source, fresh)
    return _answer(_shown(fresh))


async def _say_yes(visit: Visit, source: Approval, made: Grant) -> Grant:
    """A call that waits, and is one of those that are allowed, has its maker's yes by that: it goes on, which is the
    first use of the grant. Gives the grant as it is then."""
    holds, store, person, call = visit.app.holds, visit.app.holds.store, visit.person, source.call
    said = json.loads(text) if (text := arguments(call)) else None
    if source.state is not State.PENDING or not rules.allows(made, call, said, source.needs, store.now_ns()):
        return made
    with contextlib.suppress(StoreUnavailable):
        if await store.use(made.id, source.call_id, call.cost or 0):
            try:
                await holds.vote(source.id, person.name, person.roles, True, f"by the grant {made.id}")
            except (KeyError, Refused):  # it was decided meanwhile
                await store.give_back(made.id, source.call_id)
            else:
                visit.app.ledger.flush()
                return replace(made, uses=1, cost=call.cost or 0)
    return made


async def revoke(visit: Visit) -> Response:
    """Ends it at once, everywhere: each use is asked for where it is kept."""
    found, person = await _found(visit), visit.person
    if person.name not in found.by and person.roles.isdisjoint({"admin", *found.roles}):
        needed = ", ".join(sorted({"admin", *found.roles}))
        raise HTTPException(403, f"To take this grant back needs one of the roles {needed}, or to have made it.")
    async with visit.desk.changing:
        result = "unknown"
        try:
            with asking(_NOT_KNOWN):
                revoked = await visit.app.holds.store.revoke(found.id)
            result = "ok"
        finally:
            _note(visit, "revoked", found, result, None)
    if not revoked:
        raise HTTPException(404, _NOT_THERE)
    return _answer({"id": found.id, "revoked": True})


@dataclass(frozen=True, slots=True)
class _Facts:
    """Which calls are meant."""

    agent: str
    tenant: str
    session: str | None
    protocol: str
    target: str
    operation: str
    where: Mapping[str, Any]
    definition: str


def _facts(wanted: Mapping[str, Any], source: Approval | None) -> _Facts:
    where = _where(wanted)
    named = {name: _name(wanted, name) for name in ("agent", "tenant", "protocol", "target", "operation")}
    session = NO_SESSION if wanted.get("session") == NO_SESSION else _name(wanted, "session")
    if source is None:
        if not (named["agent"] and named["target"] and named["operation"]):
            raise HTTPException(400, "A grant names `agent`, `target` and `operation`, or an approval as `from`.")
        if where is None:
            raise HTTPException(400, "For which arguments? Give their values in `where`, or `any_arguments` as true.")
        tenant, protocol = named["tenant"] or "", named["protocol"] or ""
        return _Facts(named["agent"], tenant, session, protocol, named["target"], named["operation"], where, "")
    call = source.call
    for name in ("agent", "tenant", "protocol", "target", "operation"):
        if named[name] not in (None, getattr(call, name)):
            raise HTTPException(400, f"`{name}` is another than that of {source.id}. Leave one of them out.")
    if "session" not in wanted:
        session = call.session or NO_SESSION
    if where is None:
        if not arguments(call):
            raise HTTPException(400, f"{source.id} has no JSON arguments. For calls with any, give `any_arguments`.")
        where = {"": json.loads(arguments(call))}
    return _Facts(call.agent, call.tenant, session, call.protocol, call.target, call.operation, where, call.definition)


async def _source(visit: Visit, wanted: Mapping[str, Any]) -> Approval | None:
    name = wanted.get("from")
    if name is None:
        return None
    if not isinstance(name, str) or not APPROVAL.fullmatch(name):
        raise HTTPException(400, "`from` is no approval's id.")
    with asking():
        found = await visit.app.holds.store.get(name)
    if found is None:
        raise HTTPException(400, "No approval has the id in `from`, or it was long ago.")
    return found


def _agent(agents: Collection[AgentSettings], name: str, tenant: str) -> AgentSettings:
    for each in agents:
        if each.name == name and tenant in ("", each.tenant):
            return each
    raise HTTPException(400, f"There is no agent {name[:64]!r}{f' of {tenant[:64]!r}' if tenant else ''}.")


def _protocol(visit: Visit, target: str) -> str:
    for each in visit.app.settings.tools:
        if each.name == target:
            if each.offer_as_mcp:
                raise HTTPException(
                    400, f"Calls of {target} come by http and by mcp: say in `protocol` which of them you mean."
                )
            return each.kind
    raise HTTPException(400, "`protocol` is missing: openai, anthropic, mcp, http, a2a or openenv.")


async def _definition(visit: Visit, target: str, operation: str) -> str:
    """What calls of this operation of an MCP server have to be of: the definition of its tool as of now; empty where
    there is none. Raises HTTPException."""
    pipeline = visit.app.pipeline
    for each in pipeline.assembly.toolbox:
        if isinstance(each, McpServer) and each.settings.name == target:
            break
    else:
        raise HTTPException(400, f"There is no MCP server {target[:64]!r}: `target` is the one that has the tool.")
    if operation in ACTS:
        return ""
    try:
        return await each.catalogue.digest(operation, pipeline.definitions)
    except (MalformedCall, DefinitionRefused) as error:
        raise HTTPException(409, str(error)) from None
    except (TargetFailed, DefinitionsUnavailable) as error:
        raise HTTPException(503, f"{error} No grant was made.") from None


def _slot(role: str | None, roles: Collection[str], source: Approval | None) -> str:
    """The one slot that a grant of one person fills. Raises HTTPException."""
    if source is not None:
        needs = source.needs
        if len(needs) > 1:
            several = ", ".join(needs)
            raise HTTPException(
                403, f"Such calls need {several}, each from a person of its own: nobody allows them alone."
            )
        if role not in (None, needs[0]):
            raise HTTPException(400, f"`role` is another than {needs[0]}, which {source.id} needs.")
        return needs[0]
    if role is not None:
        return role
    if len(roles) != 1:
        mine = ", ".join(sorted(roles)) or "none"
        raise HTTPException(400, f"`role` is missing: the one whose word such calls need. You have {mine}.")
    return next(iter(roles))


def _name(wanted: Mapping[str, Any], name: str) -> str | None:
    value = wanted.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise HTTPException(400, f"`{name}` is no text of 1 to {_LONGEST_NAME} printable characters.")
    return value


def _where(wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
    where, any_arguments = wanted.get("where"), wanted.get("any_arguments", False)
    if not isinstance(any_arguments, bool):
        raise HTTPException(400, "`any_arguments` is neither true nor false.")
    if any_arguments and where:
        raise HTTPException(400, "`any_arguments` and values in `where` exclude each other. Leave one of them out.")
    if any_arguments:
        return {}
    if where is None:
        return None
    if not isinstance(where, dict):
        raise HTTPException(400, '`where` is no object of values by JSON Pointer, as {"/base": "main"}.')
    try:
        found: dict[str, Any] = json.loads(json_text(where))
    except (TypeError, ValueError):
        raise HTTPException(400, "`where` holds what no JSON text can: it nests too deep, for instance.") from None
    return found


def _length(wanted: Mapping[str, Any]) -> int:
    value = wanted.get("expires_in")
    try:
        return int(seconds(value.text if isinstance(value, Number) else value) * _SECOND)
    except PydanticCustomError:
        raise HTTPException(400, "`expires_in` is no duration; write seconds, or for example 15m or 1h.") from None


def _count(wanted: Mapping[str, Any]) -> int | None:
    value = wanted.get("max_uses")
    if value is None:
        return None
    number = _decimal(value) if isinstance(value, Number) else Decimal(0)
    if number != number.to_integral_value() or not 1 <= number <= _MOST_USES:
        raise HTTPException(400, f"`max_uses` is no whole number from 1 to {_MOST_USES}.")
    return int(number)


def _cost(wanted: Mapping[str, Any]) -> int | None:
    value = wanted.get("max_cost_usd")
    if value is None:
        return None
    number = _decimal(value) if isinstance(value, Number) else Decimal(0)
    if not 0 < number <= Decimal(MOST) / NANO or nano(number) < 1:
        raise HTTPException(400, f"`max_cost_usd` is no number above 0, up to {MOST // NANO}.")
    return nano(number)


def _decimal(value: Number) -> Decimal:
    """A number of modest size; 0 for what is none: 1e999999999 takes ages to be made whole."""
    number = Decimal(value.text) if len(value.text) <= 40 else Decimal(0)
    return number if number == 0 or abs(number.adjusted()) < 20 else Decimal(0)


async def _found(visit: Visit) -> Grant:
    name = visit.request.path_params["id"]
    with asking():
        there_are = await visit.app.holds.store.grants()
    for each in there_are:
        if each.id == name:
            return each
    raise HTTPException(404, _NOT_THERE)


def _shown(grant: Grant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "tenant": grant.tenant,
        "agent": grant.agent,
        "session": grant.session,
        "protocol": grant.protocol,
        "target": grant.target,
        "operation": grant.operation,
        "where": grant.where,
        "roles": grant.roles,
        "by": grant.by,
        "comment": grant.comment,
        "created": grant.created / _SECOND,
        "expires": grant.expires / _SECOND,
        "max_uses": grant.max_uses,
        "uses": grant.uses,
        "max_cost_usd": exact(grant.max_cost) if grant.max_cost is not None else None,
        "cost_usd": exact(grant.cost),
        "definition": grant.definition,
    }


def _answer(facts: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(facts), media_type="application/json")


def _note(visit: Visit, event: str, grant: Grant, result: str, source: str | None) -> None:
    app, engine = visit.app, visit.app.pipeline.engine
    masks = engine is not None and engine.masks
    record = {
        "event": event,
        "who": visit.person.name,
        "grant": grant.id,
        "tenant": grant.tenant,
        "agent": grant.agent,
        "session": grant.session,
        "protocol": grant.protocol,
        "target": grant.target,
        "operation": grant.operation,
        "where": {
            pointer: STARS if masks else _masked(app.pipeline.assembly.mask, pointer, value)
            for pointer, value in grant.where.items()
        },
        "roles": grant.roles,
        "expires": grant.expires,
        "max_uses": grant.max_uses,
        "max_cost_usd": usd_text(grant.max_cost) if grant.max_cost is not None else None,
        "uses": grant.uses,
        "comment": grant.comment,
        "from": source,
        "result": result,
    }
    app.ledger.note("grant", record)
    app.ledger.flush()


def _masked(mask: Mask, pointer: str, value: Any) -> Any:
    """A value that arguments have to have, as far as it may be recorded."""
    names = segments(pointer)
    for name in reversed(names):
        value = {name: value}
    if not isinstance(value, dict):
        return value
    value = mask.apply(value)[0]
    for name in names:
        value = value[name] if isinstance(value, dict) else value
    return value


_PLACE: Final = "/grants/{id}"

OPERATIONS = (
    Operation(
        "GET",
        "/grants",
        "Calls that are allowed beforehand: the grants that last.",
        GrantList,
        grants,
        query=(
            Parameter("tenant", "Only those of this tenant."),
            Parameter("agent", "Only those of this agent."),
            Parameter("page_size", f"How many at most, up to {_LONGEST_PAGE}; {_PAGE} when absent."),
            AFTER,
        ),
    ),
    Operation(
        "POST",
        "/grants",
        "Allow calls beforehand. For people with the role whose word they need, who are not the ones who ask.",
        GrantView,
        make,
        takes=NewGrant,
    ),
    Operation("GET", _PLACE, "One grant, while it lasts.", GrantView, grant),
    Operation(
        "DELETE",
        _PLACE,
        "End a grant at once, everywhere. For its maker, people with its role, and `admin`.",
        Revoked,
        revoke,
    ),
)
