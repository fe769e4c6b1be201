"""Calls that a person has allowed beforehand: for some time, for one agent, one tool and arguments that fit.

A grant answers what the policy wants people for. It never outweighs a no.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.approvals import HeldCall, NotEntitled, Refused
from policies.binding import DEEPEST
from policies.masks import segments
from policies.quorum import missing

NO_SESSION: Final = ""
"""A grant's session where it is for calls without one, and for no others."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Grant:
    """What is allowed. `id` is `grt_` and a ULID. Times are Unix nanoseconds, costs nano-dollars.

    `session` is None for any, and for none, and NO_SESSION for calls without one only. `where` has constraints on
    arguments, by JSON Pointer (RFC 6901): each is satisfied by exactly that value, of that type; empty for any
    arguments. `roles` are the approval slots that `by`, its makers, fill, one person each: so it is good for calls that
    need some of these and no others, and a role stands twice in it only where two people have said yes. `definition` is
    the hash of the tool's definition as it was then.
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


def allows(grant: Grant, call: HeldCall, arguments: Any, needs: Sequence[str], now: int) -> bool:
    """Whether the grant is good for a call whose approval would need these slots.

    `arguments` are the call's body, parsed. A call whose cost nobody knows is none for a grant with a limit on costs;
    and one of which the policy does not say who has to approve it is none for any.
    """
    return (
        (grant.tenant, grant.agent, grant.protocol, grant.target, grant.operation, grant.definition)
        == (call.tenant, call.agent, call.protocol, call.target, call.operation, call.definition)
        and (grant.session is None or grant.session == (call.session or NO_SESSION))
        and len(needs) > 0
        and Counter(needs) <= Counter(grant.roles)
        and grant.lasts(now)
        and (grant.max_cost is None or (call.cost is not None and grant.cost + call.cost <= grant.max_cost))
        and all(_holds(arguments, pointer, value) for pointer, value in grant.where.items())
    )


def still_valid(grant: Grant, roles_of: Callable[[str], Collection[str] | None]) -> bool:
    """Whether its makers still fill its slots. `roles_of` gives a person's roles as of now, None for who is gone."""
    return not missing(grant.roles, {person: roles_of(person) or () for person in grant.by})


def check(
    grant: Grant,
    makers: Mapping[str, Collection[str]],
    *,
    requesters: Collection[str],
    longest: int,
    no_grant: bool,
) -> None:
    """Whether a new grant may be made by these people, with the roles that they have.

    `requesters` are those who must not decide on the agent's calls, `longest` is in nanoseconds, and `no_grant` says
    that the tool is marked so. Raises NotEntitled, Refused.
    """
    if no_grant:
        raise Refused(f"Calls of {grant.target} cannot be allowed beforehand: people decide on each of them.")
    if not all((grant.tenant, grant.agent, grant.protocol, grant.target, grant.operation)):
        raise Refused("A grant names one agent, one tool and one operation.")
    if grant.agent in makers:
        raise NotEntitled("Who asks for calls does not allow them.")
    if any(person in requesters for person in makers):
        raise NotEntitled(f"You own {grant.agent}, so others allow its calls.")
    if set(grant.by) != makers.keys() or not grant.roles:
        raise NotEntitled("A grant names those who make it, and the roles that they make it with.")
    if lacking := missing(grant.roles, makers):
        raise NotEntitled(f"You do not have the role {lacking[0]}.")
    if grant.expires <= grant.created:
        raise Refused("A grant has to last for some time.")
    if grant.expires - grant.created > longest:
        raise Refused(f"A grant lasts for {_length(longest)} at most (`approvals.longest_grant`).")
    if grant.max_uses is None and grant.max_cost is None:
        raise Refused("A grant needs a limit: on its uses, on what they cost, or both.")
    if any(limit is not None and limit < 1 for limit in (grant.max_uses, grant.max_cost)) or grant.uses or grant.cost:
        raise Refused("A grant allows at least one use, at a cost above zero, and begins with none.")
    for pointer, value in grant.where.items():
        try:
            segments(pointer)
        except ValueError as error:
            raise Refused(f"The constraint {error}.") from None
        if not _is_json(value):
            raise Refused(f"The constraint on {pointer!r} is no JSON value.")


def _length(ns: int) -> str:
    """As it is written in a configuration: 8h, 90m, 45s."""
    for unit, size in (("h", 3600), ("m", 60)):
        if ns % (size * 1_000_000_000) == 0:
            return f"{ns // (size * 1_000_000_000)}{unit}"
    return f"{ns / 1e9:g}s"


_NOTHING: Final = object()


def _holds(arguments: Any, pointer: str, wanted: Any) -> bool:
    found = arguments
    try:
        for name in segments(pointer):
            found = _member(found, name)
    except ValueError:
        return False
    return _same(found, wanted)


def _member(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return value.get(name, _NOTHING)
    if isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
        return value[int(name)]
    return _NOTHING


def _same(one: Any, other: Any) -> bool:
    """Equal and of the same type, all the way down: 1 is neither 1.0 nor true, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def _is_json(value: Any, levels: int = DEEPEST) -> bool:
    if isinstance(value, dict):
        return levels > 0 and all(_is_text(key) and _is_json(member, levels - 1) for key, member in value.items())
    if isinstance(value, list):
        return levels > 0 and all(_is_json(item, levels - 1) for item in value)
    return (
        value is None
        or isinstance(value, int)
        or _is_text(value)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)
