"""Calls that a person has allowed beforehand: for some time, for one agent, one tool and arguments that fit.

A grant answers what the policy wants people for. It never outweighs a no.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Grant:
    """What is allowed. `id` is `grt_` and a ULID. Times are Unix nanoseconds, costs nano-dollars.

    `session` is None for all of the agent's. `where` has constraints on arguments, by JSON Pointer (RFC 6901): each is
    satisfied by exactly that value; empty for any arguments. `roles` are the approval slots that its makers fill, so a
    grant is good for calls that need no others. `definition` is the hash of the tool's definition as it was then.
    """

    id: str
    tenant: str
    agent: str
    session: str | None
    protocol: str
    target: str
    operation: str
    where: Mapping[str, Any]
    definition: str
    roles: tuple[str, ...]
    by: tuple[str, ...]
    created: int
    expires: int
    max_uses: int | None
    max_cost: int | None
    uses: int = 0
    cost: int = 0
    comment: str = ""

    def lasts(self, now: int) -> bool:
        """Whether it allows any call now."""
        return (
            now < self.expires
            and (self.max_uses is None or self.uses < self.max_uses)
            and (self.max_cost is None or self.cost < self.max_cost)
        )


def allows(grant: Grant, call: Mapping[str, Any], needs: Collection[str], now: int) -> bool:
    """Whether the grant is good for a call, given as the policy's input has it with `tenant`, `agent`, `session`,
    `protocol`, `target`, `operation`, `arguments`, `definition` and `cost`, whose approval would need these slots."""
    raise NotImplementedError
