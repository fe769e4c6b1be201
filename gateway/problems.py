"""The table of everything that can end a call early: one row per error, one word that means it everywhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.base import Breach, Refusal
from adapters.errors import (
    BodyTooLarge,
    MalformedCall,
    MethodNotAllowed,
    ProtocolBreach,
    UnknownEndpoint,
    UnknownOperation,
)
from gateway.identity import Unauthenticated
from gateway.ledger import LedgerUnavailable
from gateway.lifeline import BodyTooSlow, Stopping
from gateway.mcp.definitions import DefinitionRefused, DefinitionsUnavailable
from gateway.mcp.doorway import WrongHost, WrongOrigin
from gateway.mcp.sessions import SealsUnavailable
from gateway.oauth.tokens import ScopeMissing
from gateway.standings import AgentPaused, AgentQuarantined, StandingsUnknown
from policies.errors import (
    AnswerNotKept,
    ApprovalDenied,
    ApprovalEnded,
    ApprovalExpired,
    ApprovalPending,
    ApprovalsUnavailable,
    ApprovalUnknown,
    BudgetContended,
    BudgetExhausted,
    BudgetShort,
    BudgetsUnavailable,
    Denied,
    EngineUnavailable,
    InputRefused,
    RateLimited,
    Undecided,
    UnpricedModel,
)
from routing.errors import NoHealthyTarget, NoRoute


class TargetTimeout(Exception):
    """The target did not answer in the time its configuration gives it."""


class TargetFailed(Exception):
    """The target could not be reached, or broke off its answer."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a refused agent sees: HTTP status, the code of the contract, what to do next.

    `retry` is True where the identical call may well succeed a little later.
    """

    status: int
    code: str
    next_step: str
    retry: bool = False
    retry_after: int | None = None


_TELL_OPERATOR = "Tell the operator of this gateway; the call's id says which."

PROBLEMS: Mapping[type[BaseException], Problem] = {
    Unauthenticated: Problem(401, "unauthenticated", ""),
    ScopeMissing: Problem(403, "policy_denied", "Log in again, and ask for it."),
    UnknownEndpoint: Problem(404, "no_route", "Check the base URL."),
    UnknownOperation: Problem(404, "no_route", "Use another, or ask the operator of this gateway."),
    WrongHost: Problem(421, "malformed_call", "The operator of this gateway can add it to listen.hosts."),
    WrongOrigin: Problem(403, "malformed_call", "The operator of this gateway can add it to listen.origins."),
    MethodNotAllowed: Problem(405, "malformed_call", ""),
    MalformedCall: Problem(400, "malformed_call", "Correct the call; repeating it unchanged will not help."),
    ProtocolBreach: Problem(400, "malformed_call", "Correct the message; repeating it unchanged will not help."),
    InputRefused: Problem(400, "malformed_call", "Correct the call; repeating it unchanged will not help."),
    BodyTooLarge: Problem(413, "body_too_large", "Send less at once."),
    BodyTooSlow: Problem(408, "malformed_call", "Send the whole body without long pauses."),
    Denied: Problem(403, "policy_denied", ""),
    DefinitionRefused: Problem(403, "policy_denied", "Do not repeat the call or work around it; tell your user."),
    DefinitionsUnavailable: Problem(503, "ledger_unavailable", "Repeat the call later.", retry=True, retry_after=2),
    Undecided: Problem(403, "policy_unavailable", _TELL_OPERATOR),
    EngineUnavailable: Problem(403, "policy_unavailable", _TELL_OPERATOR),
    ApprovalPending: Problem(403, "approval_pending", "Do not change it or work around it: repeat the identical call."),
    ApprovalDenied: Problem(403, "approval_denied", "Do not repeat it or work around it; tell your user."),
    ApprovalExpired: Problem(
        403, "approval_expired", "Silence is no consent: do not work around it. The identical call asks them again."
    ),
    ApprovalUnknown: Problem(502, "target_failed", "Do not repeat it; a person has to find out what came of it."),
    AnswerNotKept: Problem(502, "target_failed", "Do not repeat it; tell your user."),
    ApprovalsUnavailable: Problem(503, "ledger_unavailable", "Repeat the call later.", retry=True, retry_after=2),
    AgentPaused: Problem(403, "agent_paused", "Do not repeat the call or work around it: wait for that person."),
    AgentQuarantined: Problem(
        403, "agent_quarantined", "Stop all work, and look for no other way: only a person can let this agent go on."
    ),
    StandingsUnknown: Problem(503, "ledger_unavailable", "Repeat the call later.", retry=True, retry_after=2),
    BudgetExhausted: Problem(429, "budget_exhausted", "Do not repeat the call; ask the operator of this gateway."),
    BudgetContended: Problem(429, "budget_contended", "Repeat the call in a moment.", retry=True, retry_after=1),
    BudgetsUnavailable: Problem(503, "ledger_unavailable", "Repeat the call later.", retry=True, retry_after=2),
    UnpricedModel: Problem(
        403, "unpriced_model", "Use another model, or ask the operator of this gateway to configure its price."
    ),
    RateLimited: Problem(429, "rate_limited", "", retry=True),
    NoRoute: Problem(
        404, "no_route", "Ask the operator of this gateway; GET /v1/models names some of the models that are served."
    ),
    NoHealthyTarget: Problem(503, "no_healthy_target", "Repeat the call later.", retry=True, retry_after=5),
    Stopping: Problem(503, "no_healthy_target", "Repeat the call.", retry=True, retry_after=1),
    SealsUnavailable: Problem(503, "ledger_unavailable", "Repeat the call later.", retry=True, retry_after=2),
    TargetTimeout: Problem(504, "target_timeout", "Repeat the call later.", retry=True),
    TargetFailed: Problem(502, "target_failed", "Repeat the call later.", retry=True),
    LedgerUnavailable: Problem(503, "ledger_unavailable", _TELL_OPERATOR, retry=True, retry_after=10),
}

UNEXPECTED = Problem(500, "internal_error", _TELL_OPERATOR)
"""A fault of our own. Its text stays in the log: an agent learns the call's id and nothing else."""

_UNEXPECTED_MESSAGE = "The gateway failed on this call."


_PATIENCE = 60.0
"""Seconds for which a client may be told to sleep before it repeats a call: some have no bound of their own."""


def problem_for(error: BaseException) -> Problem:
    return PROBLEMS.get(type(error), UNEXPECTED)


def refusal_for(error: BaseException, call_id: str) -> Refusal:
    """What to tell the agent. Only errors of the table speak for themselves; others are not quoted."""
    problem = problem_for(error)
    message = _UNEXPECTED_MESSAGE if problem is UNEXPECTED else str(error)
    if isinstance(error, ApprovalPending):
        message = f"{message} With your key, GET /approvals/{error.approval}?wait=50 tells when there is news."
    if problem.next_step:
        message = f"{message} {problem.next_step}"
    retry, retry_after = problem.retry, problem.retry_after
    if isinstance(error, RateLimited):
        retry = error.retry_after is not None and error.retry_after <= _PATIENCE
        retry_after = math.ceil(error.retry_after) if error.retry_after is not None else None
    details: Mapping[str, Any] = {}
    if isinstance(error, BudgetShort | RateLimited):
        details = error.details
    elif isinstance(error, ApprovalEnded):
        details = {"approval": error.approval}
    breach = error.breach if isinstance(error, ProtocolBreach) and isinstance(error.breach, Breach) else None
    return Refusal(problem.status, problem.code, message, call_id, retry, retry_after, details, breach)
