"""Who is at the browser: sessions that begin with a person's token, and how often somebody may try one."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gateway.identity import People, Person

LASTS: Final = 12 * 3600.0
"""Seconds after which a person shows the token again."""
MOST_TRIES: Final = 10
"""Wrong tokens of one address in `WITHIN` seconds; after that even the right one has to wait."""
WITHIN: Final = 60.0

_MOST_SESSIONS: Final = 20
"""Of one person; the oldest ends when another one begins."""
_MOST_ADDRESSES: Final = 10_000
_NETWORK: Final = 64
"""Bits of an IPv6 address that say whose it is."""

Clock = Callable[[], float]


@dataclass(slots=True)
class Notice:
    """What the next page tells once: `comment` is what the person had written where it was not taken."""

    text: str
    bad: bool = False
    comment: str = ""


@dataclass(slots=True)
class Session:
    """One browser of one person. `form` is what every form of it has to bring along."""

    id: str
    authorization: str = field(repr=False)
    until: float
    form: str = field(repr=False)
    notice: Notice | None = None

    def has_sent(self, token: str) -> bool:
        return hmac.compare_digest(self.form.encode(), token.encode())


class Sessions:
    """Those of this process; they end with it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, people: People, token: str) -> Session | None:
        """A session for whoever has this token; None for nobody."""
        authorization = f"Bearer {token}"
        if not token.isascii() or people.recognise(authorization) is None:
            return None
        now = self._clock()
        for each in [one for one in self._sessions.values() if one.until <= now]:
            self.end(each)
        mine = [each for each in self._sessions.values() if each.authorization == authorization]
        for each in mine[: max(0, len(mine) - _MOST_SESSIONS + 1)]:
            self.end(each)
        session = Session(secrets.token_urlsafe(32), authorization, now + LASTS, secrets.token_urlsafe(32))
        self._sessions[session.id] = session
        return session

    def of(self, cookie: str | None, people: People) -> tuple[Session, Person] | None:
        """The session of a cookie, and who is behind it by the configuration as it is now."""
        session = self._sessions.get(cookie or "")
        if session is None:
            return None
        person = people.recognise(session.authorization)
        if person is None or session.until <= self._clock():
            self.end(session)
            return None
        return session, person

    def end(self, session: Session) -> None:
        self._sessions.pop(session.id, None)


class Tries:
    """Wrong tokens, counted by the address they came from."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, list[float]] = {}

    def pause(self, address: str) -> float:
        """Seconds for which this address has to wait; 0 for none."""
        now, wrong = self._clock(), self._wrong.get(_whose(address), [])
        recent = [at for at in wrong if at > now - WITHIN]
        return recent[-MOST_TRIES] + WITHIN - now if len(recent) >= MOST_TRIES else 0.0

    def failed(self, address: str) -> None:
        whose = _whose(address)
        wrong = self._wrong.pop(whose, [])
        if len(self._wrong) >= _MOST_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[whose] = [*wrong, self._clock()][-MOST_TRIES:]


def _whose(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, _NETWORK), strict=False))
    return str(found)
