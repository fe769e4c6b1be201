"""How agents stand, and a person's word that stops one or lets it go on."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.admin.approvals import check_ledger, sent_object
from gateway.admin.operation import AFTER, Operation, Parameter, View, Visit, body, page_size, shown
from gateway.identity import ACTIVE, Agent
from gateway.standings import RULES, NotWritten, Outrun, Standings
from policies.approval_store import StoreUnavailable

_PAGE: Final = 200
_LONGEST_PAGE: Final = 1000
_LONGEST_REASON: Final = 500
_SECOND: Final = 1_000_000_000

_State = Literal["active", "paused", "quarantined"]

_ONLY_HERE: Final = (
    "The agent is stopped at this gateway. The state does not answer, so others have not heard: they will when it "
    "does. Until then, ask them too."
)
_NOT_KNOWN: Final = "The state does not answer; whether anything has changed is not known. Look, and ask again."
_OUTRUN: Final = "Somebody else has changed how this agent stands, just now. Look, and ask again."


class AgentView(View):
    """A configured agent, and how it stands by a person's word."""

    name: str
    tenant: str
    team: str | None
    roles: list[str]
    autonomy_tier: int
    state: _State = Field(
        description="`paused`: its calls are refused, held ones wait. `quarantined`: held ones are taken back, calls "
        "under way are cut."
    )
    reason: str = Field(description="Why, as its agent is told, too; empty where nobody has said.")
    by: str | None = Field(description="Who has said so last; null where nobody ever has.")
    since: str | None = Field(description="When, RFC 3339.")
    calls: int = Field(description="Calls that it has under way at this gateway, held ones included.")

    @classmethod
    def of(cls, agent: Agent, standings: Standings, calls: Counter[tuple[str, str]]) -> AgentView:
        said = standings.of(agent)
        return cls.model_validate(
            {
                "name": agent.name,
                "tenant": agent.tenant,
                "team": agent.team,
                "roles": list(agent.roles),
                "autonomy_tier": agent.autonomy_tier,
                "state": agent.state,
                "reason": said.reason if said is not None else "",
                "by": said.by if said is not None else None,
                "since": _rfc_3339(said.at) if said is not None else None,
                "calls": calls[agent.tenant, agent.name],
            }
        )


class AgentList(View):
    items: list[AgentView]
    next: str | None = Field(description="`after` of the next page; null at the end.")


class StateChange(View):
    """How an agent is to stand, at all gateways, until a person says something else."""

    state: _State
    reason: str = Field(default="", description="Why, for the agent and the record.", max_length=_LONGEST_REASON)


async def agents(visit: Visit) -> Response:
    """One page, in the order of the configuration."""
    asked = visit.query
    if asked.get("state", ACTIVE) not in RULES:
        raise HTTPException(400, f"`state` is none of {', '.join(RULES)}.")
    found = [
        agent
        for agent in visit.app.pipeline.assembly.directory
        if asked.get("tenant", agent.tenant) == agent.tenant and asked.get("state", agent.state) == agent.state
    ]
    if "after" in asked:  # which may be no agent any more, or stand otherwise by now
        found = _behind(visit, found, asked["after"])
    most = page_size(asked, _PAGE, _LONGEST_PAGE)
    page, calls = found[:most], visit.app.standings.under_way()
    items = [AgentView.of(agent, visit.app.standings, calls) for agent in page]
    return shown(AgentList(items=items, next=_key(page[-1]) if len(found) > most else None))


async def agent(visit: Visit) -> Response:
    return _shown(visit, _found(visit))


async def set_state(visit: Visit) -> Response:
    """Durable first, then in force here, then on record and answered: no call of a stopped agent begins after that."""
    found, app, who = _found(visit), visit.app, visit.person.name
    state, reason = _wanted(await body(visit.request))
    if state == ACTIVE:
        check_ledger(visit)  # what stops an agent does not wait for it
    old, result = found.state, "unknown"
    try:
        await app.standings.set(found, state, reason, who)
        result = "ok"
    except NotWritten:
        result = "here"
        raise HTTPException(503, _ONLY_HERE) from None
    except Outrun:
        result = "refused"
        raise HTTPException(409, _OUTRUN) from None
    except StoreUnavailable:
        raise HTTPException(503, _NOT_KNOWN) from None
    finally:
        record = {
            "event": state,
            "who": who,
            "tenant": found.tenant,
            "agent": found.name,
            "old": old,
            "reason": reason,
            "result": result,
        }
        app.ledger.note("agent", record)
        app.ledger.flush()
    return _shown(visit, _found(visit))


def _found(visit: Visit) -> Agent:
    """The agent that a path names. Raises HTTPException."""
    name, tenant = visit.request.path_params["agent"], visit.query.get("tenant")
    found = [
        each for each in visit.app.pipeline.assembly.directory if each.name == name and tenant in (None, each.tenant)
    ]
    if not found:
        raise HTTPException(404, "There is no such agent; GET /agents lists them.")
    if len(found) > 1:
        tenants = ", ".join(each.tenant for each in found)
        raise HTTPException(409, f"Several tenants have an agent of this name. Say which, as ?tenant=: {tenants}.")
    return found[0]


def _behind(visit: Visit, found: list[Agent], key: str) -> list[Agent]:
    """Those that come after another one. Raises HTTPException."""
    places = {_key(each): place for place, each in enumerate(visit.app.pipeline.assembly.directory)}
    if key not in places:
        raise HTTPException(400, "`after` names an agent that is not there any more. Begin again without it.")
    return [each for each in found if places[_key(each)] > places[key]]


def _wanted(sent: bytes) -> tuple[str, str]:
    """(state, reason). Raises HTTPException."""
    wanted = sent_object(sent, StateChange)
    state, reason = wanted.get("state"), wanted.get("reason", "")
    if not isinstance(state, str) or state not in RULES:
        raise HTTPException(400, f"`state` is none of {', '.join(RULES)}.")
    if not isinstance(reason, str) or len(reason) > _LONGEST_REASON or not reason.isprintable():
        raise HTTPException(400, f"`reason` is no text of at most {_LONGEST_REASON} printable characters.")
    return state, reason


def _shown(visit: Visit, found: Agent) -> Response:
    return shown(AgentView.of(found, visit.app.standings, visit.app.standings.under_way()))


def _key(agent: Agent) -> str:
    return f"{agent.tenant}/{agent.name}"


def _rfc_3339(at: int) -> str:
    return f"{datetime.fromtimestamp(at // _SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"


_TENANT: Final = Parameter("tenant", "Whose agent it is, where several tenants have one of this name.")

OPERATIONS = (
    Operation(
        "GET",
        "/agents",
        "All agents, and how they stand.",
        AgentList,
        agents,
        query=(
            Parameter("tenant", "Only those of this tenant."),
            Parameter("state", f"Only those that stand so: {', '.join(RULES)}."),
            Parameter("page_size", f"How many at most, up to {_LONGEST_PAGE}; {_PAGE} when absent."),
            AFTER,
        ),
    ),
    Operation("GET", "/agents/{agent}", "One agent, and how it stands.", AgentView, agent, query=(_TENANT,)),
    Operation(
        "PUT",
        "/agents/{agent}/state",
        "Stop an agent at all gateways, or let it go on.",
        AgentView,
        set_state,
        role="admin",
        query=(_TENANT,),
        takes=StateChange,
    ),
)
