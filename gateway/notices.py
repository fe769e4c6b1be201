"""Tells people's systems of held calls: messages that wait in the store, carried to the webhook by whichever gateway
takes them first.

A message is left in the same step as what it tells of, and goes away once it was taken with a 2xx or is given up. While
a gateway has it on lease no other one gets it, and nothing is sent once a lease may be over:

    killed while it sends        the message is sent again after the lease, under the same id
    after it was taken           the same, where the store was not told: receivers know the id
    while a message is put off   it is tried when its time comes, by any gateway

What is told of an approval is how it stands when it is sent. Later messages about it are put off as long as an earlier
one is, as far as one gateway knows of it.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from config.settings import PersonSettings, Settings, WebhookSettings
from gateway import slack
from gateway.approval_view import shown
from gateway.webhooks import CLOSING, PATIENCE, Try, attempt, moment
from policies import approvals
from policies.approval_store import ApprovalStore, Message, StoreUnavailable
from policies.approvals import Approval, State

log = logging.getLogger("weighbridge.notices")

PAUSES: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0)
"""Seconds between the tries of one message, give or take a fifth."""
LEASE: Final = 60.0
"""Seconds for which a gateway has a message to itself."""
LOOK: Final = 1.0
"""Seconds between two looks for messages of which nobody has told."""
LONGEST_BODY: Final = 64 * 1024
"""Bytes of a body that is told in full."""

_SECOND: Final = 1_000_000_000
_MARGIN: Final = 5.0
"""Seconds of a lease that are left when a try is over, at least."""
_AT_ONCE: Final[Mapping[str, int]] = {"standard": 8, "slack": 1}
"""Approvals about which messages are under way at a time: Slack takes one message a second."""
_BRIEF: Final = 2
"""Tries after which a channel that takes no message may take one without what an agent has written."""
_UNASKED_AT_ONCE: Final = 100
_LONGEST_REST: Final = 300.0
"""Seconds for which nothing is sent where a receiver asks for it, at most."""
_PASSED: Final = 5.0
"""Seconds after which a message that was put off, and did not come back, is with another gateway."""
_MOST_KNOWN: Final = 10_000
"""Messages of which it is remembered that they are put off, or were taken."""


class Courier:
    """Carries the messages of one store to `approvals.webhook`; without one, nobody wants to be told.

    `counts` has messages by what became of them: `sent`; `given_up`; `passed_over`, as nothing for a channel;
    `unasked`, as there is no webhook; and tries that `failed`.
    """

    def __init__(
        self,
        store: ApprovalStore,
        note: Callable[[str, Mapping[str, Any]], None],
        *,
        patience: float = PATIENCE,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`note` writes to the ledger; `jitter` gives numbers from 0 to 1."""
        self.counts = {"sent": 0, "failed": 0, "given_up": 0, "passed_over": 0, "unasked": 0}
        self._store = store
        self._note = note
        self._patience = patience
        self._jitter = jitter
        self._webhook: WebhookSettings | None = None
        self._link: str | None = None
        self._people: Sequence[PersonSettings] = ()
        self._lines: dict[str, list[tuple[int, int, Message]]] = {}
        """What is in hand: by approval, the version that a message tells of, the end of its lease, and the message."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._put_off: dict[str, dict[int, int]] = {}
        """What was put off here: by approval, then by version, until when."""
        self._over: dict[str, None] = {}
        """Ids of messages that are done with, of which the store does not know."""
        self._rest_until = 0
        self._troubled = False
        self._broken = False
        self._news = asyncio.Event()
        self._ending = False
        self._loop: asyncio.Task[None] | None = None

    def under(self, settings: Settings) -> None:
        """From now on this is the webhook, and these are the people."""
        if settings.approvals.webhook != self._webhook:
            self._rest_until = 0
        self._webhook = settings.approvals.webhook
        self._link = settings.approvals.link
        self._people = settings.admin.people
        self._news.set()

    @property
    def waiting(self) -> Mapping[str, int]:
        """Messages that this gateway has `under_way`, and those that it has `put_off`."""
        now = self._store.now_ns()
        return {
            "under_way": sum(1 + len(line) for line in self._lines.values()),
            "put_off": sum(until > now for each in self._put_off.values() for until in each.values()),
        }

    async def begin(self) -> None:
        self._store.listen(self._changed)
        self._loop = asyncio.create_task(self._keep(), name="messages about approvals")

    async def end(self, within: float = CLOSING) -> None:
        """Lets what is under way arrive, as far as that is possible in so many seconds; the rest stays in the store."""
        self._ending = True
        self._news.set()
        if self._loop is not None:
            await asyncio.wait([self._loop])
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _changed(self, _: Collection[str] | None) -> None:
        self._news.set()

    async def _keep(self) -> None:
        while not self._ending:
            self._news.clear()
            more = False
            try:
                more = await self.carry()
            except StoreUnavailable:
                pass  # the store's own failure tells it
            except Exception:
                self._complain()
            if not more and not self._ending:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self._news.wait()

    async def carry(self) -> bool:
        """Takes messages whose time has come, and begins to tell of them. Whether there can be more at once."""
        now = self._store.now_ns()
        if self._webhook is None:
            return await self._drop(now)
        free = _AT_ONCE[self._webhook.format] - len(self._lines)
        if free <= 0 or now < self._rest_until:
            return False
        found = await self._store.messages(now, int(LEASE * _SECOND), free)
        for message in found:
            taken = (_version(message), now + int(LEASE * _SECOND), message)
            line = self._lines.get(message.approval)
            if line is None:
                line = self._lines[message.approval] = []
                task = asyncio.create_task(self._carry(message.approval, line), name=f"notices {message.approval}")
                self._tasks.add(task)
                task.add_done_callback(self._left)
            line.append(taken)
            line.sort(key=lambda each: each[:2])
        return len(found) == free

    async def _drop(self, now: int) -> bool:
        """Takes messages that nobody wants as delivered."""
        found = await self._store.messages(now, int(LEASE * _SECOND), _UNASKED_AT_ONCE)
        done = await asyncio.gather(*(self._store.delivered(each.id) for each in found), return_exceptions=True)
        self.counts["unasked"] += sum(each is None for each in done)
        for each in done:
            if each is not None:
                raise each
        return len(found) == _UNASKED_AT_ONCE

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()

    async def _carry(self, approval: str, line: list[tuple[int, int, Message]]) -> None:
        """Tells of one approval, one message after the other."""
        try:
            while line and not self._ending:
                version, until, message = line.pop(0)
                await self._tell(version, until, message)
        except StoreUnavailable:
            pass  # what is left comes again when its lease is over
        except Exception:
            self._complain()
        finally:
            del self._lines[approval]

    async def _tell(self, version: int, until: int, message: Message) -> None:
        """One message, once; or, where an earlier one waits, not yet."""
        if message.id in self._over:
            await self._done(message)
            return
        now = self._store.now_ns()
        if until - now < int((self._patience + _MARGIN) * _SECOND):
            return
        passed = now - int(_PASSED * _SECOND)
        others = {
            each: at for each, at in self._put_off.pop(message.approval, {}).items() if each != version and at > passed
        }
        if others:
            self._put_off[message.approval] = others
        if earlier := [at + (version - each) * 1000 for each, at in others.items() if each < version]:
            await self._postpone(message, version, max(*earlier, now + int(_PASSED * _SECOND)))
            return
        webhook = self._webhook
        if webhook is None:
            await self._done(message, "unasked")
            return
        approval = await self._store.get(message.approval)
        if approval is None:
            await self._give_up(message, approval, "it is forgotten what it was about")
            return
        try:
            body = self._body(webhook, message, approval, now)
        except Exception as error:
            self._complain()
            came = Try(f"the gateway cannot write it ({type(error).__name__})")
        else:
            if body is None:
                await self._done(message, "passed_over")
                return
            came = await attempt(webhook, message.id, body, now=now / _SECOND, patience=self._patience)
        await self._came(message, version, approval, came)

    async def _came(self, message: Message, version: int, approval: Approval, came: Try) -> None:
        """Acts on what came of a try."""
        if not came.why:
            if self._troubled:
                log.info("the webhook of approvals takes messages again")
            self._troubled = False
            await self._done(message, "sent")
            return
        self.counts["failed"] += 1
        if not self._troubled:
            log.warning("the webhook of approvals does not take a message: %s", came.why)
        self._troubled = True
        now = self._store.now_ns()
        if came.rest:
            self._rest_until = now + int(min(came.rest, _LONGEST_REST) * _SECOND)
        if came.gone or message.tries >= len(PAUSES):
            await self._give_up(message, approval, came.why)
            return
        pause = max(PAUSES[message.tries] * (0.8 + 0.4 * self._jitter()), came.rest)
        await self._postpone(message, version, now + int(pause * _SECOND))

    async def _postpone(self, message: Message, version: int, until: int) -> None:
        while len(self._put_off) >= _MOST_KNOWN:
            self._put_off.pop(next(iter(self._put_off)))
        self._put_off.setdefault(message.approval, {})[version] = until
        await self._store.postponed(message.id, until)

    async def _give_up(self, message: Message, approval: Approval | None, why: str) -> None:
        log.error("nobody was told of %s, %s: %s; the ledger has it", message.what, message.approval, why)
        call = approval.call if approval is not None else None
        self._note(
            "approval",
            {
                "approval": message.approval,
                "event": "untold",
                "message": message.id,
                "what": message.what,
                "tenant": call.tenant if call is not None else None,
                "agent": call.agent if call is not None else None,
                "tries": message.tries + 1,
                "reason": why,
            },
        )
        await self._done(message, "given_up")

    async def _done(self, message: Message, became: str | None = None) -> None:
        if became is not None:
            self.counts[became] += 1
        while len(self._over) >= _MOST_KNOWN:
            self._over.pop(next(iter(self._over)))
        self._over[message.id] = None
        await self._store.delivered(message.id)
        self._over.pop(message.id, None)

    def _body(self, webhook: WebhookSettings, message: Message, approval: Approval, now: int) -> bytes | None:
        link = f"{self._link.rstrip('/')}/approvals/{approval.id}" if self._link is not None else None
        if webhook.format == "slack":
            said = slack.notice(approval, message.what, link=link, now=now, brief=message.tries >= _BRIEF)
            return orjson.dumps(said) if said is not None else None
        if message.what == "approval.requested" and approval.instead_of and approval.state is not State.PENDING:
            return None  # who wanted these arguments has approved them alone, and nobody else was asked
        data = {**_shown(approval), "link": link, "event": dict(message.facts)}
        if approval.state is State.PENDING:
            data["may_decide"] = [
                each.name for each in self._people if approvals.may_decide(approval, each.name, each.roles)
            ]
            data["escalated_to"] = list(approval.escalated)
        if message.what == "approval.reminder":
            data["reminder"] = approval.told
        return orjson.dumps({"type": message.what, "timestamp": moment(message.at / _SECOND), "data": data})

    def _complain(self) -> None:
        """Of a fault of the gateway's own, once."""
        if not self._broken:
            log.exception("to tell of approvals has failed in the gateway itself")
        self._broken = True


def _version(message: Message) -> int:
    version = message.facts.get("version")
    return version if isinstance(version, int) else 0


def _shown(approval: Approval) -> dict[str, Any]:
    """As it is shown everywhere; of a body that is too long for a message, how it begins and that there is more."""
    body = approval.call.body
    if len(body) <= LONGEST_BODY:
        return shown(approval)
    facts = shown(replace(approval, call=replace(approval.call, body=b"", arguments=b"")))
    cut: dict[str, Any] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    try:
        cut["beginning"] = codecs.getincrementaldecoder("utf-8")().decode(body[:LONGEST_BODY])
    except UnicodeDecodeError:
        cut["beginning_base64"] = base64.b64encode(body[:LONGEST_BODY]).decode()
    cut["note"] = "This is not all that will run. Read the rest at the link before you decide."
    return {**facts, "not_in_full": cut}
