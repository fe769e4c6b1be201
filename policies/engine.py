"""The seam to whatever evaluates Rego: one question, one decision."""

from typing import Final, Protocol

from policies.decision import Decision

ENTRY: Final = "data.weighbridge.decision"
"""The rule that is asked."""


class Engine(Protocol):
    """Evaluates one revision of the policies."""

    @property
    def revision(self) -> str:
        """Names the policy text and data that decide: 64 hexadecimal digits."""
        ...

    def evaluate(self, document: bytes, now_ns: int) -> Decision:
        """Decides on `document`, the policy's input as JSON text in UTF-8, as of `now_ns` (Unix nanoseconds).

        The same document and time give the same decision; nothing of one call is visible to the next. Raises Undecided
        when the policy gave no valid answer, InputRefused when the document cannot be represented, EngineUnavailable
        when nobody could be asked, and nothing else.
        """
        ...
