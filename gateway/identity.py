"""Who is calling: a presented key becomes an agent, or the call ends here."""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from config.settings import AgentSettings, IssuerSettings, PersonSettings
from policies.document import agent_fragment

ACTIVE: Final = "active"
"""How an agent stands of which nobody has said anything else."""


class Unauthenticated(Exception):
    """No credential, an unknown one, or two that disagree. The message never contains one.

    `shown` is whether there was one at all.
    """

    shown = False

    def __init__(self, message: str, *, shown: bool = False) -> None:
        super().__init__(message)
        self.shown = shown


@dataclass(slots=True)
class Agent:
    """A known caller. `state` is how it stands; `fragment`, its part of the policy's input, is rendered for each."""

    name: str
    tenant: str
    roles: tuple[str, ...]
    autonomy_tier: int
    team: str | None = None
    state: str = field(init=False)
    fragment: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.stand(ACTIVE)

    def stand(self, state: str) -> None:
        """From now on it stands so, also for calls that have begun."""
        self.state = state
        self.fragment = agent_fragment(self.name, self.tenant, self.roles, self.autonomy_tier, state)


class Directory:
    """The agents of one configuration, found by the SHA-256 of their keys, which are not kept themselves, and by what
    issuers of tokens call them."""

    def __init__(self, agents: Iterable[AgentSettings], issuers: Sequence[IssuerSettings] = ()) -> None:
        self._agents: dict[bytes, tuple[bytes, Agent]] = {}
        self._subjects: dict[tuple[str, str], Agent] = {}
        self._named: dict[tuple[str, str], Agent] = {}
        for settings in agents:
            agent = Agent(
                settings.name,
                settings.tenant,
                tuple(settings.roles),
                settings.autonomy_tier,
                settings.team,
            )
            digest = _digest(settings)
            if digest is not None:
                self._agents[digest] = (digest, agent)
            if settings.subject is not None and (settings.issuer is not None or len(issuers) == 1):
                self._subjects[settings.issuer or issuers[0].issuer, settings.subject] = agent
            self._named[agent.tenant, agent.name] = agent

    def __len__(self) -> int:
        return len(self._named)

    def __iter__(self) -> Iterator[Agent]:
        """In the order of the configuration."""
        return iter(self._named.values())

    def find(self, tenant: str, name: str) -> Agent | None:
        return self._named.get((tenant, name))

    def named(self, tenant: str, name: str) -> Agent:
        """An agent by its name. Raises Unauthenticated where there is none any more."""
        agent = self.find(tenant, name)
        if agent is None:
            raise Unauthenticated("This agent is not configured any more.")
        return agent

    def identify(self, authorization: bytes | None, api_key: bytes | None) -> Agent:
        """The agent that holds the presented key. Raises Unauthenticated.

        Only digests are looked up and compared, so timing says nothing about a key.
        """
        agent = self.holder(hashlib.sha256(shown(authorization, api_key)).digest())
        if agent is None:
            raise Unauthenticated("The key is not known here. Ask the operator of this gateway for one.", shown=True)
        return agent

    def holder(self, digest: bytes) -> Agent | None:
        """The agent whose key has this SHA-256."""
        known = self._agents.get(digest)
        return known[1] if known is not None and hmac.compare_digest(known[0], digest) else None

    def logged_in(self, issuer: str, subject: str) -> Agent | None:
        """The agent that an issuer means by a subject."""
        return self._subjects.get((issuer, subject))


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who may use the admin API."""

    name: str
    roles: frozenset[str]


class People:
    """Those who may use the admin API, found like agents: by the SHA-256 of what they show."""

    def __init__(self, people: Iterable[PersonSettings]) -> None:
        self._people = {
            hashlib.sha256(each.token.reveal().encode("utf-8")).digest(): Person(each.name, frozenset(each.roles))
            for each in people
        }

    def recognise(self, authorization: str | None) -> Person | None:
        key = _bearer((authorization or "").encode("latin-1"))
        return self._people.get(hashlib.sha256(key).digest()) if key else None


def shown(authorization: bytes | None, api_key: bytes | None) -> bytes:
    """The one credential of a call. Raises Unauthenticated where there is none, or another one beside it."""
    key = _bearer(authorization)
    if api_key:
        if key and not hmac.compare_digest(key, api_key):
            raise Unauthenticated(
                "The call shows two different keys. Send one, as `Authorization: Bearer KEY`.", shown=True
            )
        key = api_key
    if not key:
        raise Unauthenticated("The call shows no key. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.")
    return key


def _bearer(authorization: bytes | None) -> bytes:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _digest(settings: AgentSettings) -> bytes | None:
    """None for an agent that shows tokens alone."""
    if settings.key_sha256 is not None:
        return bytes.fromhex(settings.key_sha256)
    if settings.key is None:
        return None
    return hashlib.sha256(settings.key.reveal().encode("utf-8")).digest()
