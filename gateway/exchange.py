"""All that is known about one call: filled from top to bottom as the call moves through the pipeline."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adapters.base import Adapter, AgentCall, Headers, Usage
from policies.approvals import Approval
from policies.budgets import Account, Loan, Spent
from policies.decision import Decision
from policies.document import Question
from policies.engine import Engine
from policies.grants import Grant
from policies.limits import Pass, Standing
from routing.health import Pick
from routing.outcomes import Outcome, Stage
from routing.pins import Pin
from routing.table import Arm, Route, Weights

if TYPE_CHECKING:
    from gateway.assembly import Assembly
    from gateway.identity import Agent
    from gateway.lending import Lending
    from gateway.obligations import Fulfilled
    from gateway.waiting import Patience


@dataclass(slots=True)
class Asked:
    """One question put before the policy. `decision` is None where there was no answer."""

    question: Question
    decision: Decision | None
    revision: str
    engine: Engine | None
    """Whom it was put before, and who has a say in what of it is recorded; None for nobody."""
    bundles: Mapping[str, str] | None = None
    """The revisions that the policy's bundles were given by those who built them; None where it came in none."""
    masks: bool = False
    """Whether the policy has a say in what of this is recorded: then nothing is but what it has said."""
    event: dict[str, Any] | None = None
    """What is recorded of it once the policy has had its say; see `gateway.decision_log`."""


class Reached(enum.Enum):
    """Whether the target can have acted on a call."""

    NO = "no"
    MAYBE = "maybe"
    """Bytes of the call were on their way, and no answer began."""
    ANSWERED = "answered"


@dataclass(slots=True)
class Attempt:
    """One try of a call at one node of an arm. Times are as of Exchange.

    `stage`, `status`, `error`, `hidden` and `complete` are as of `routing.outcomes.Facts`. `outcome` is None while it
    is under way. `cost` is what this try has cost, in nano-dollars.
    """

    pick: Pick
    began: float
    ended: float = 0.0
    first_byte_at: float | None = None
    stage: Stage = "unsent"
    status: int | None = None
    error: str = ""
    hidden: str = ""
    complete: bool = True
    outcome: Outcome | None = None
    usage: Usage | None = None
    cost: int = 0
    detail: str = ""

    @property
    def arm(self) -> Arm:
        return self.pick.arm

    @property
    def node(self) -> str:
        """Its base URL."""
        return self.pick.node.url

    @property
    def overflow(self) -> bool:
        """Whether an arm before it was full."""
        return self.pick.overflow


@dataclass(slots=True)
class Exchange:
    """One call, from its first byte to its record.

    Times are seconds of the monotonic clock, but for `arrived_ns`, which is the wall clock's.
    """

    id: str
    arrived_ns: int
    began: float
    method: str
    path: str
    query: bytes
    headers: Headers = field(repr=False)
    own: dict[bytes, bytes] = field(repr=False)
    """Those of the request's headers that are meant for the gateway."""
    doubled: frozenset[bytes]
    """Names of those that came twice: two readers might believe different ones."""
    adapter: Adapter
    assembly: "Assembly"
    local: str = ""
    """The address of the gateway's that it came to."""
    within: str | None = None
    """The call that this one began within: what a server asked of its client. None for what came by itself."""
    raw_path: bytes = b""
    """The path as it came, before it was decoded; empty where nobody knows."""

    agent: "Agent | None" = None
    read_at: float = 0.0
    session: str | None = None
    call: AgentCall | None = None
    decision: Decision | None = None
    asked: list[Asked] = field(default_factory=list, repr=False)
    """Every question put before the policy, in order."""
    fulfilled: "Fulfilled | None" = None
    """What the policy demanded and was done; None where it demanded nothing."""
    held: str | None = None
    """The approval that it has waited for."""
    changed: str | None = None
    """The approval of its own arguments, where a person has put others in their place."""
    patience: "Patience | None" = None
    """For how long, and how."""
    approval: Approval | None = None
    """The one that it has taken and may use, or has used: as it was when it was taken."""
    grant: Grant | None = None
    """What allows it in place of people's word on itself."""
    repeated: bool = False
    """Whether it was answered as an identical call was, which ran by the same approval."""
    still_claimed: Callable[[], bool] | None = None
    """Whether the approval that it uses is its own yet; None where it has claimed none."""
    admitted: Pass | None = None
    """That limits have let the call in; None where there are none."""
    standings: tuple[Standing, ...] = ()
    """How they stand."""
    payers: tuple[Account, ...] = ()
    """The accounts that pay for it."""
    day: str = ""
    """The UTC day on which it was let in."""
    loan: Loan | None = field(default=None, repr=False)
    lending: "Lending | None" = field(default=None, repr=False)
    """How a streamed answer borrows as it grows; None where nothing is borrowed for it."""
    clamped: int | None = None
    """Tokens that each answer was limited to because a budget pays for no more."""
    warnings: list[str] = field(default_factory=list)
    """What soft budgets have to say of this call."""
    intended: bool = False
    route: Route | None = None
    weights: Weights | None = None
    """Those of the route that this call goes by, from its reservation to its last attempt."""
    arm: Arm | None = None
    """The one that has the call, or had it last; until then the one that it is meant for."""
    meant: Arm | None = None
    """The one that the call fell on, whichever took it."""
    order: Sequence[Arm] = ()
    """The arms that may take it, the one it was meant for first: those that are left, once one has failed."""
    pin: Pin | None = None
    """Where something is kept that it refers to."""
    bound: bool = False
    """Whether it refers to something that a target keeps, known here or not: then no other can take it."""
    bills: list[Spent] = field(default_factory=list, repr=False)
    """What attempts have cost that were not the last one."""
    attempts: list[Attempt] = field(default_factory=list, repr=False)
    """Every try, in order; the last that its arm's protocol had words for is what the agent was answered with."""

    status: int = 0
    """The HTTP status the agent was sent; 0 while there is none."""
    code: str = "ok"
    """How the call ended: `ok`, a code of the contract, or `client_gone`, `stopped`, `internal_error`."""
    detail: str = ""
    """For the operator's record only: what went wrong, without anything secret."""
    reached: Reached = Reached.NO
    target_status: int | None = None
    whole: bool = False
    """Whether the target's answer came to its end, be it one that tells of an error."""
    tool_error: bool = False
    """Whether the tool's answer says that it has failed."""
    result: str = ""
    """What the policy made of the tool's answer: `withheld`, `redacted`, or nothing."""
    usage: Usage | None = None
    cost: int | None = None
    """Nano-dollars; None where nothing was sent."""
    overrun: int = 0
    """Nano-dollars that it cost more than was lent."""
    unpriced: bool = False
    """Whether it cost something that nobody knows."""
    sent_at: float | None = None
    """When the request left for the target."""
    first_byte_at: float | None = None
    ended: float = 0.0

    @property
    def used_up(self) -> bool:
        """Whether an approval was used for it that nobody can use again."""
        return self.still_claimed is not None and (self.reached is not Reached.NO or bool(self.bills))

    @property
    def consent(self) -> Approval | Grant | None:
        """By what people allow it: their word on this call, or on calls like it."""
        return self.approval or self.grant
