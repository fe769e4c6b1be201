"""Calls that only the target that answered an earlier one can take: what it keeps of that, or alone can decrypt.

A `previous_response_id`, a stored conversation and encrypted reasoning mean nothing anywhere else. So the call that
brings one back outranks weights: it goes to that target, and to that node where a target has several, for as long as
the route has it, at weight 0 too (`Weights.pinned`, `Fleet.pinned`). When the target is removed or barred, the call is
refused with words on what to send instead (NoRoute); while its node is ejected or full, it is refused for now
(NoHealthyTarget). It is never sent elsewhere, first or after a failure.

What this process has not seen is not known here: after a restart, or of another replica. Such a call goes where its
session does, and nowhere after that, and a target that does not know what it refers to says so.

Pins are kept per agent: nobody learns from an answer's id that he has guessed where it was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple

MOST: Final = 100_000
"""Pins that are kept; some 25 MB. Beyond that those are forgotten first that were of no use for longest."""
KEPT: Final = 86_400.0
"""Seconds after its last use at which a pin is forgotten."""


class Pin(NamedTuple):
    """Where something is kept: the target's name, and its node's base URL."""

    target: str
    url: str


class Pins:
    """The pins of one process. Times are seconds of a monotonic clock that never goes back."""

    def __init__(self, most: int = MOST, kept: float = KEPT) -> None:
        self._most = most
        self._kept = kept
        self._pins: dict[bytes, tuple[float, Pin]] = {}
        """In the order of their last use."""

    def __len__(self) -> int:
        return len(self._pins)

    def keep(self, tenant: str, agent: str, handles: Iterable[str], pin: Pin, now: float) -> None:
        """An agent was given `handles`: ids of answers and conversations, encrypted parts as they are."""
        for handle in handles:
            key = _key(tenant, agent, handle)
            self._pins.pop(key, None)
            self._pins[key] = (now, pin)
        self._forget(now)

    def find(self, tenant: str, agent: str, handles: Iterable[str], now: float) -> Pin | None:
        """Where the call has to go that brings these back; None where nothing is known of any of them.

        Where several are known, the last one decides, as what was made last.
        """
        found: Pin | None = None
        for handle in handles:
            key = _key(tenant, agent, handle)
            used, pin = self._pins.get(key, (0.0, None))
            if pin is not None and now - used < self._kept:
                found = pin
                del self._pins[key]
                self._pins[key] = (now, pin)
        self._forget(now)
        return found

    def _forget(self, now: float) -> None:
        while self._pins:
            oldest = next(iter(self._pins))
            if len(self._pins) <= self._most and now - self._pins[oldest][0] < self._kept:
                return
            del self._pins[oldest]


def _key(tenant: str, agent: str, handle: str) -> bytes:
    hashed = blake2b(f"{tenant}\0{agent}\0".encode(), digest_size=16)
    hashed.update(handle.encode("utf-8", "surrogatepass"))
    return hashed.digest()
