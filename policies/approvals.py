"""May this call happen, by people: the seam at which a call is held until those whom the policy names have answered."""

from dataclasses import dataclass
from typing import Protocol

from policies.decision import Decision, Effect
from policies.errors import ApprovalNeeded


@dataclass(frozen=True, slots=True)
class Approval:
    """A yes, bound to one call. `document` is its part of the policy's input when the policy is asked again.

    `revision` names the policy that wanted it.
    """

    id: str
    document: bytes
    revision: str


class Approvals(Protocol):
    """Asks people, and sees to it that each yes is used once."""

    async def answer(self, call_id: str, decision: Decision) -> Approval | None:
        """None for a decision that needs nobody. Raises ApprovalNeeded when people have not said yes."""
        ...

    async def claim(self, approval: Approval) -> None:
        """Uses the approval up, durably, before anything is sent."""
        ...


class NobodyToAsk:
    """Until calls can be held: what needs no approval passes, what needs one is refused."""

    async def answer(self, call_id: str, decision: Decision) -> Approval | None:
        if decision.effect is Effect.NEEDS_APPROVAL:
            raise ApprovalNeeded(decision)
        return None

    async def claim(self, approval: Approval) -> None:
        raise AssertionError("nobody was asked, so nobody approved")
