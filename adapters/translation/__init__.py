"""Carries a call to a target that speaks another protocol, and the answer back: chat completions, messages.

Pure functions over bytes. What goes over is what both protocols know; `docs/translation.md` is the table of it. What
the other has no word for is refused by name, so that no agent takes silence for consent; hints alone are left behind.
A translated answer is one that the agent's own adapter can read: usage, meters and refusals need not know of any of it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from adapters.base import AgentCall, Headers
from adapters.translation.to_anthropic import ToAnthropic
from adapters.translation.to_openai import ToOpenAI


class Converter(Protocol):
    """Turns one target's stream of events into the agent's, event by event. It holds back at most one event."""

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes of the target, returns those for the agent (maybe none), whole events only.

        Raises ValueError where the target says what its protocol does not, or what has no counterpart.
        """
        ...

    def rest(self) -> bytes:
        """What may still go when the target's stream has ended; to be called once, after the last `feed`.

        A stream that ends without its protocol's sign of a finished answer gets none of the other's: the agent's meter
        sees it cut. Raises ValueError as `feed` does.
        """
        ...


class Translation(Protocol):
    """How calls of one protocol are put to targets of another. It knows nothing of any call; one serves them all."""

    @property
    def suffix(self) -> str:
        """The path behind the target's root, as in `Endpoint.suffix`."""
        ...

    @property
    def headers(self) -> Headers:
        """Header lines that the target wants, in place of any of the agent's of the same name."""
        ...

    @property
    def withheld(self) -> Sequence[bytes]:
        """Names of the agent's header lines that mean something in its own protocol only. Its query does, too."""
        ...

    def request(self, call: AgentCall, model: str | None, longest: int) -> bytes:
        """The body for a target that knows the model as `model`.

        `longest` is the most tokens that an answer may have where the target wants that said and the agent does not
        say it. Raises MalformedCall, whose message names the member that cannot go, and what to do about it.
        """
        ...

    def answer(self, call: AgentCall, status: int, body: bytes) -> bytes:
        """A whole answer of the target as one of the agent's protocol. The status stays; above 299 it is an error,
        whatever its body is. Raises ValueError where an answer of 2xx is none, or has something without counterpart."""
        ...

    def stream(self, call: AgentCall) -> Converter:
        """For one streamed answer of the status 2xx."""
        ...


def translation(
    agent_protocol: str, operation: str, target_protocol: str, now: Callable[[], float] = time.time
) -> Translation | None:
    """How a call of `agent_protocol` gets to a target of `target_protocol`; None where there is no way, or no need.

    `now` is the wall clock in seconds: chat completions say when they were made, messages do not.
    """
    match agent_protocol, operation, target_protocol:
        case "openai", "chat", "anthropic":
            return ToAnthropic(now)
        case "anthropic", "messages", "openai":
            return ToOpenAI()
        case _:
            return None
