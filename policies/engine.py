"""The seam to whatever evaluates Rego: one question, one decision."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from policies.decision import Decision
from policies.document import Question

ENTRY: Final = "data.weighbridge.decision"
"""The rule that is asked."""


class Engine(Protocol):
    """Evaluates one revision of the policies.

    The same question at the same time gets the same decision; nothing of one call is visible to the next. Both ways to
    ask raise Undecided when the policy gave no valid answer, InputRefused when the input cannot be represented,
    EngineUnavailable when nobody could be asked, and nothing else.
    """

    @property
    def revision(self) -> str:
        """Names the policy text and data that decide now: 64 hexadecimal digits."""
        ...

    @property
    def bundles(self) -> Mapping[str, str]:
        """The revisions that bundles were given by those who built them, by name; empty where there are none."""
        ...

    @property
    def failure(self) -> str | None:
        """Why calls cannot be decided now, for the operator; None when they can."""
        ...

    async def decide(self, question: Question) -> Decision:
        """Decides one call. Only what the policy can read of it need be looked at."""
        ...

    async def evaluate(self, document: bytes, now_ns: int) -> Decision:
        """Decides on `document`, a whole input as JSON text in UTF-8, as of `now_ns` (Unix nanoseconds), afresh."""
        ...

    @property
    def masks(self) -> bool:
        """Whether the policies may have a say in what is recorded of their decisions: see `policies.log_mask`."""
        ...

    async def mask(self, event: bytes) -> Any:
        """The value of `data.system.log.mask` for an event of the decision log, as parsed from JSON; None for
        undefined. Raises what the ways to ask raise."""
        ...

    async def retire(self) -> None:
        """Ends what the engine holds, giving way to calls meanwhile. Nobody asks it afterwards."""
        ...
