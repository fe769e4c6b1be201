"""Every way in which the question "may this call happen?" ends without a plain yes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.approvals import Approval
    from policies.decision import Decision


class Denied(Exception):
    """The policy said no. Its text is the policy's explanation, fit for the agent."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.explanation or "The policy does not allow this call.")
        self.decision = decision


class ApprovalEnded(Exception):
    """The call waits for people, or has waited in vain. The text is fit for the agent; `approval` is its id."""

    approval = ""

    def __init__(self, message: str, approval: str) -> None:
        super().__init__(message)
        self.approval = approval


class ApprovalPending(ApprovalEnded):
    """People have not decided yet, and the connection is not kept any longer. `found` is what is waited for."""

    found: Approval | None = None

    def __init__(self, message: str, approval: str, found: Approval | None = None) -> None:
        super().__init__(message, approval)
        self.found = found


class ApprovalDenied(ApprovalEnded):
    """Somebody has said no, or has taken a yes back."""


class ApprovalExpired(ApprovalEnded):
    """Nobody decided in time, or nobody used the yes in time."""


class ApprovalUnknown(ApprovalEnded):
    """The approved call may have run, and nobody knows what came of it."""


class AnswerNotKept(ApprovalEnded):
    """The approved call has run, and nobody can be told its answer again."""


class ApprovalsUnavailable(Exception):
    """Nobody can be asked now, or it cannot be found out what they have said; so the call is refused."""


class _Unanswered(Exception):
    """The text is for the agent; `internal` may quote the policy and is for the operator's log alone."""

    def __init__(self, message: str, internal: str = "") -> None:
        super().__init__(message)
        self.internal = internal


class Undecided(_Unanswered):
    """The policy gave no valid answer: undefined, failed or of the wrong shape. It counts as no.

    `internal` may also quote the call; `recorded` is what can be kept of it, where masked values must not be.
    """

    def __init__(self, internal: str = "", recorded: str | None = None) -> None:
        super().__init__("The policy gave no valid decision, so the call is refused.", internal)
        self.recorded = internal if recorded is None else recorded


class InputRefused(_Unanswered):
    """The call cannot be put before the policy, for instance because its arguments nest too deep."""


class EngineUnavailable(_Unanswered):
    """Nobody could be asked: no engine, or not one of this thread."""


class _Short(Exception):
    """Money or room is short. The text is fit for the agent, and for the record: it says what ran out."""

    @property
    def recorded(self) -> str:
        return str(self)


class BudgetShort(_Short):
    """A budget cannot pay for the call. Its text is fit for the agent; `details` says the same to programs."""

    details: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.details = details


class BudgetExhausted(BudgetShort):
    """What is left of a budget does not pay for the call, and will not before its window ends."""


class BudgetContended(BudgetShort):
    """What is left would pay for the call if other calls under way gave back what they do not need."""


class BudgetsUnavailable(Exception):
    """Whether a budget can pay cannot be found out now, so the call is refused."""


class UnpricedModel(_Short):
    """A budget would have to pay for a call whose price nobody knows."""


class RateLimited(_Short):
    """Too many calls or tokens. `retry_after` is in seconds; None where waiting does not help."""

    retry_after: float | None = None
    details: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, message: str, retry_after: float | None, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.details = details


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a policy or its data: where (line from 1), what, and what to do about it."""

    file: str
    line: int | None
    message: str
    remedy: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}. {self.remedy}".rstrip()


class PolicyError(Exception):
    """These policies must not be put to use. Holds one or more problems.

    `transient` says that nothing may be wrong with them: the machine lacked what it takes to find out.
    """

    def __init__(self, problems: Iterable[Problem], *, transient: bool = False) -> None:
        self.problems = list(problems)
        self.transient = transient
        super().__init__("\n".join(map(str, self.problems)))
