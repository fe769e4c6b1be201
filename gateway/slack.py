"""What people are told in a channel: messages in the shape that Slack's incoming webhooks take.

Nothing that an agent, a policy or a person has written is markup in them, nor a link, a mention or an emoji: it stands
in plain or preformatted text, with everything in it visible. Slack refuses a message of which a part, or all of it, is
too long, so that what is long is cut, and says so. Source: Slack's Block Kit reference; the bound on a whole message is
not documented, and reported to lie between 11,000 and 13,000 characters.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from gateway.approval_view import arguments, beside, lines, visible
from policies.approvals import Approval, State
from policies.money import usd_text

LONGEST_BODY: Final = 64 * 1024
"""Bytes of a body that is laid out for people; of a longer one they are shown how it begins."""

_HEADER: Final = 150
_TEXT: Final = 3000
_FIELD: Final = 300
_LONG: Final = 1000
"""Characters of an explanation, or of what somebody has said."""
_WHOLE: Final = 9000
_WIDTH: Final = 80
_SECOND: Final = 1_000_000_000

_WORDS: Final[Mapping[State, str]] = {
    State.APPROVED: "Approved",
    State.DENIED: "Denied",
    State.EXPIRED: "Nobody decided in time",
    State.CANCELLED: "Taken back",
    State.SUPERSEDED: "Goes on with other arguments",
    State.CONSUMED: "Approved, and under way",
    State.DONE: "Approved, and done",
    State.UNKNOWN: "It may have run: nobody knows what came of it",
    State.LAPSED: "Approved, and not used in time",
    State.REVOKED: "The approval was taken back",
}
"""What has become of a call that is not waiting for people any more."""
_DECIDED: Final = frozenset({State.APPROVED, State.DENIED, State.CONSUMED, State.DONE})
"""States of which people's word is what there is to tell."""
_SETTLED: Final = frozenset(f"approval.{state}" for state in _WORDS if state not in (State.CONSUMED, State.DONE))


def notice(approval: Approval, what: str, *, link: str | None, now: int, brief: bool = False) -> dict[str, Any] | None:
    """What a channel is told of an event: that people are asked, are asked again, and what the end is. None for the
    others, and where nobody is asked any more: the end has a message of its own. `now` is in Unix nanoseconds.

    A `brief` one has nothing of what the agent sends: nobody but Slack knows how it counts every character, and no call
    is to keep people from hearing of it.
    """
    pending = approval.state is State.PENDING
    if what not in _SETTLED and not (pending and what in ("approval.requested", "approval.reminder")):
        return None
    call, needed = approval.call, ", ".join(approval.missing)
    title = ("Still to be decided" if approval.told else "Approval needed") if pending else _WORDS[approval.state]
    who = f"{call.tenant}/{call.agent}"
    fields = {
        "Agent": who,
        "Session": call.session,
        "Operation": call.operation,
        "Target": f"{call.target} ({call.protocol})",
        "Risk": approval.risk_level,
        "Estimated cost": f"${usd_text(call.cost)}" if call.cost is not None else "not known",
        "Still missing" if approval.votes else "Needs": needed if pending else None,
        "Decide by": f"{_utc(approval.decide_by)}, in {_time(approval.decide_by - now)}" if pending else None,
        "Votes": "; ".join(
            f"{each.person}: {'yes' if each.yes else 'no'}, as {', '.join(each.roles)}" for each in approval.votes
        ),
        "Goes on as": approval.became,
    }
    before: list[dict[str, Any]] = [_header(f"{title}: {call.agent}, {call.operation}")]
    if pending and approval.told:
        before.append(_section(f"{needed}: nobody has filled this yet."))
        if approval.escalated:
            before.append(_section(f"These roles may decide now, too: {', '.join(approval.escalated)}."))
    before.append(_fields(fields))
    for label, words in _said(approval):
        if words and _size(before) < _WHOLE // 2:
            before.append(_section(f"{label}: {words}"))
    after: list[dict[str, Any]] = [
        _context(
            [f"weighbridge approvals show {approval.id}", f"policy {approval.revision}", f"call {approval.binding}"]
        )
    ]
    if link is not None:
        after.insert(0, _button("Read and decide" if pending else "Read", link))
    most = _WHOLE - _size([*before, *after]) if not brief else 0
    shown = _what_runs(approval, most) if pending else []
    text = f"{title}: {who}"
    if pending:
        text += f", needs {needed}"
    elif approval.state in _DECIDED:
        yes = approval.state is not State.DENIED
        deciders = ", ".join(each.person for each in approval.votes if each.yes is yes)
        text += f", by {deciders}" if deciders else ""
    return _message(f"{text} ({approval.id})", [*before, *shown, *after])


def told(what: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a channel is told of a rollout: `facts` has its `route`, and says in `text` what there is to say."""
    route, said = facts.get("route"), facts.get("text")
    title = f"{what}: {route}" if route else what
    return _message(title, [_header(title), *([_section(str(said))] if said else [])])


def _said(approval: Approval) -> Iterator[tuple[str, str]]:
    yield "Why it is held", approval.explanation
    yield "Before it", approval.earlier
    for vote in approval.votes:
        yield f"{vote.person} says", _cut(vote.comment, _FIELD)
    if all(vote.comment != approval.reason for vote in approval.votes):
        yield "Reason", approval.reason


def _what_runs(approval: Approval, most: int) -> list[dict[str, Any]]:
    """All that will be sent, line by line, as far as there is room; and what to do where there is not."""
    call = approval.call
    pieces, piece, size, left, whole = [], list[str](), 0, most, len(call.body) <= LONGEST_BODY
    for line in _laid_out(approval):
        weight = _weight(line)
        if weight > left:
            whole = False
            break
        if size + weight > _TEXT:
            pieces.append(piece)
            piece, size = [], 0
        piece.append(line)
        size, left = size + weight, left - weight
    blocks = [_preformatted("\n".join(each)) for each in (*pieces, piece) if each]
    if not whole:
        digest = hashlib.sha256(call.body).hexdigest()
        cut = f"This is not all: {len(call.body)} bytes in full, SHA-256 {digest}. Read the rest before you decide."
        blocks.append(_section(cut))
    return blocks


def _laid_out(approval: Approval) -> Iterator[str]:
    call = approval.call
    query = f"?{call.query.decode('latin-1')}" if call.query else ""
    yield from _folded(visible(f"{call.method} {call.path}{query}"))
    for name, value in call.headers:
        yield from _folded(visible(f"{name.decode('latin-1')}: {value.decode('latin-1')}"))
    if len(call.body) > LONGEST_BODY:
        yield from _folded(visible(call.body[:_WHOLE].decode(errors="replace")))
        return
    if (said := arguments(approval)) is not None:
        yield from lines(said, _WIDTH)
    body = beside(approval)
    if isinstance(body, str):
        yield from lines(body, _WIDTH)
    elif body is not None:
        yield from _folded(f"base64: {base64.b64encode(body).decode()}")


def _folded(line: str) -> Iterator[str]:
    """A long line, each of its parts but the first begun as no line of a request is."""
    yield line[:_WIDTH]
    for place in range(_WIDTH, len(line), _WIDTH):
        yield f"| {line[place : place + _WIDTH]}"


def _size(blocks: list[dict[str, Any]]) -> int:
    return len(orjson.dumps(blocks).decode())


def _weight(line: str) -> int:
    """How much of what Slack takes a line uses up, at most: it may count what it escapes as escaped."""
    return len(line) + 1 + sum(map(line.count, '"\\\n')) + 4 * sum(map(line.count, "&<>"))


def _message(text: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """`text` is what notifications show: Slack reads markup in it, so it has none, and no word of an agent's."""
    for char, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, escaped)
    return {"text": _cut(text, _LONG), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _header(text: str) -> dict[str, Any]:
    return {"type": "header", "text": _plain(text, _HEADER)}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _plain(text, _LONG)}


def _fields(named: Mapping[str, str | None]) -> dict[str, Any]:
    return {"type": "section", "fields": [_plain(value, _FIELD, f"{name}\n") for name, value in named.items() if value]}


def _context(texts: Iterable[str]) -> dict[str, Any]:
    return {"type": "context", "elements": [_plain(each, _FIELD) for each in texts]}


def _button(text: str, url: str) -> dict[str, Any]:
    return {"type": "actions", "elements": [{"type": "button", "text": _plain(text, 75), "url": url}]}


def _preformatted(text: str) -> dict[str, Any]:
    inside = {"type": "rich_text_preformatted", "elements": [{"type": "text", "text": text}]}
    return {"type": "rich_text", "elements": [inside]}


def _plain(text: str, most: int, label: str = "") -> dict[str, Any]:
    return {"type": "plain_text", "text": label + _cut(text, most - len(label)), "emoji": False}


def _cut(text: str, most: int) -> str:
    """In one line, everything in it visible."""
    seen = visible(text[:_TEXT])
    if len(text) <= _TEXT and len(seen) <= most:
        return seen
    end = f" ... ({len(text)} characters)"
    return seen[: most - len(end)] + end


def _utc(at: int) -> str:
    return f"{datetime.fromtimestamp(at / _SECOND, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _time(left: int) -> str:
    """Nanoseconds, as people say it."""
    seconds = max(left // _SECOND, 0)
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"
