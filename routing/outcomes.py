"""What became of one logical call on one arm, and what that says about the arm, its node, and trying again.

A logical call is what an agent asked once, however often it was sent on the same arm. The words below are the classes
of the ledger, of metrics and of a rollout's evidence. Parallax's own nodes are held to more than hosted APIs are: that
they are full is their failure, that we have used up what a provider sells us is not the provider's.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Stage = Literal["capped", "unsent", "sent", "headed", "begun"]
"""How far a call got on the arm: not at all, because the arm is at its cap of calls in flight; chosen, with no byte
sent; sent, without an answer; the answer's head is there; and something of what it answers."""

Retry = Literal["no", "node", "arm"]
"""Who else may be tried before an agent has seen a byte: nobody; another node of the arm, then the next arm; only
another arm, because all nodes of this one would say the same."""

Ejects = Literal["", "failure", "dead_stream"]
"""What it counts as against the node: nothing; one of several consecutive failures that were seen here and not told by
the node; one of several streams that died."""


class Outcome(NamedTuple):
    """A class and what it means.

    `self_hosted` and `hosted` are whether it is an error of an arm of that kind, `counted` whether it is one of the
    calls that errors are a share of.
    """

    name: str
    self_hosted: bool
    hosted: bool
    counted: bool = True
    retry: Retry = "no"
    ejects: Ejects = ""

    def error(self, kind: str) -> bool:
        """Whether it counts as an error of a target of `kind`."""
        return self.self_hosted if kind in SELF_HOSTED else self.hosted


class Facts(NamedTuple):
    """What there is to know about a call that is over, or about to be tried elsewhere.

    `kind` is the target's. `status` is the one that it answered with, or the 4xx that it hid; `error` the name of the
    carrier's error that ended the exchange, or FIRST_TOKEN_LATE; `hidden` what was found behind a success: `status`,
    `stream_cut` or `protocol`. `complete` is whether the answer came to the end that its protocol has for it, and told
    of no error inside. `refused` is whether the gateway itself ended the call: by policy, budget or approval, or in
    stopping.
    """

    kind: str
    stage: Stage
    status: int | None = None
    error: str = ""
    hidden: str = ""
    complete: bool = True
    client_gone: bool = False
    refused: bool = False


SELF_HOSTED: Final = frozenset({"parallax"})
"""Kinds of targets whose nodes are the operator's own."""

FIRST_TOKEN_LATE: Final = "FirstTokenTimeout"
"""The name of the error when the head of an answer was there and what it answers was awaited too long: the carrier
knows only about silence."""

OUTCOMES: Final[Mapping[str, Outcome]] = {
    each.name: each
    for each in (
        Outcome("ok", False, False),
        # Nothing was answered.
        Outcome("connect", True, True, retry="node", ejects="failure"),
        Outcome("reset", True, True, retry="node", ejects="failure"),
        Outcome("first_token", True, True, retry="node", ejects="failure"),
        # The answer is a refusal.
        Outcome("upstream_5xx", True, True, retry="node"),
        Outcome("capacity", True, True, retry="node"),
        # After QUOTA_EXCUSED of nothing else it is an error, which one call cannot tell.
        Outcome("quota", False, False, retry="arm"),
        Outcome("config", True, True, retry="arm"),
        Outcome("rejected", False, False),
        # The answer is none.
        Outcome("protocol", True, True, retry="node"),
        Outcome("stream_cut", True, True, retry="node", ejects="dead_stream"),
        Outcome("stalled", True, True, retry="node", ejects="dead_stream"),
        Outcome("overlong", True, True),
        # The arm has no part in it.
        Outcome("overflow", False, False, counted=False, retry="arm"),
        Outcome("client_gone", False, False, counted=False),
        Outcome("refused", False, False, counted=False),
    )
}
"""Every class by its name."""

QUOTA_EXCUSED: Final = 600.0
"""Seconds in which a hosted arm may answer nothing but that a quota is used up: after them that is an error."""
UNANSWERED: Final = frozenset({"connect", "reset", "first_token"})
"""Classes of calls that nobody has answered anything to."""

_ERRORS: Final[Mapping[str, Mapping[Stage, str] | str]] = {
    "ConnectFailed": "connect",
    "ConnectTimeout": "connect",
    "TlsFailed": "connect",
    "FirstByteTimeout": "first_token",
    FIRST_TOKEN_LATE: "first_token",
    "IdleTimeout": {"sent": "first_token", "headed": "first_token", "begun": "stalled"},
    "TotalTimeout": {"unsent": "connect", "sent": "first_token", "headed": "first_token", "begun": "overlong"},
    "ReplyBroken": {"unsent": "reset", "sent": "reset", "headed": "stream_cut", "begun": "stream_cut"},
    "ReplyMalformed": "protocol",
}
"""An error's name -> the class, or the class by how far the call had got. Errors that are not here are of what came."""

_REFUSALS: Final[Mapping[int, str]] = {401: "config", 402: "config", 403: "config", 407: "config", 408: "upstream_5xx"}
"""Statuses below 500 that are nothing the call can help: our key, our bill, a proxy's key; and 408, a target's own word
for that it gave up."""


def classify(facts: Facts) -> Outcome:
    """The class of a call; what it means stands in `OUTCOMES`."""
    if facts.refused:
        return OUTCOMES["refused"]
    if facts.client_gone:
        return OUTCOMES["client_gone"]
    if facts.stage == "capped":
        return OUTCOMES["overflow"]
    return OUTCOMES[_name(facts)]


def _name(facts: Facts) -> str:
    status = facts.status
    if facts.hidden == "stream_cut":
        return "stream_cut"
    if facts.hidden and (facts.hidden != "status" or status is None or status < 400):
        return "protocol"
    if status is not None and status >= 400:  # whatever became of its words
        return _refusal(facts, status)
    if facts.error:
        found = _ERRORS.get(facts.error, "protocol")
        return found if isinstance(found, str) else found.get(facts.stage, "connect")
    if status is None:
        return "connect"
    if not 200 <= status <= 299:
        return "protocol"
    return "ok" if facts.complete else "stream_cut"


def _refusal(facts: Facts, status: int) -> str:
    own = facts.kind in SELF_HOSTED
    if 500 <= status <= 599:
        return "upstream_5xx"
    if status == 429:
        return "capacity" if own else "quota"
    if status in _REFUSALS:
        return _REFUSALS[status]
    if own and status in (404, 405):  # Parallax takes any model, so that what is not found is the path
        return "config"
    if status > 599:
        return "protocol"
    return "rejected"
