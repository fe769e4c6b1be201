"""Approvals, grants and what people are to be told, shared by several gateways: on a Redis server or cluster.

All of it has one hash tag, for a call is found by its key alone and people look at all tenants at once; it is little,
compared with calls. `wb:{t:}:approvals:` begins

    of:ID                hash    version, state, tenant, key, created, size, length, change, doc, forget, history
    body:ID answer:ID    text    the bytes of the call; what it was answered with, for an hour
    key:KEY              text    the approval that was opened last with this key
    in:STATE             zset    approval -> when it was opened; the same with :TENANT behind it
    due ends             zset    approval -> when time changes it; when it is forgotten
    share                hash    tenant -> bytes of its approvals
    outbox taken         zset    message -> when it is to be told; until when somebody has it
    messages             hash    message -> TIME TRIES JSON
    grant:ID             hash    text, expires, uses, cost, max_uses, max_cost, revoked; a day longer than it is good
    use:ID:CALL          text    what a call has cost a grant; ten minutes
    grants               zset    grant -> when it expires
    standings            hash    [TENANT, AGENT] -> EPOCH:JSON
    parcel:DIGEST        text    something long on its way, piece by piece; a minute
    changed              channel ids of what has changed, a line each

An approval that has ended is forgotten a week later, one of which nobody knows what became of its call after ninety
days. What one tenant has may come to `share` bytes: beyond that its ended approvals are forgotten, the oldest first,
and when none of them are left it can open no other. Answers are not counted; they are gone after an hour.

How durable an answered step is, the server's configuration decides; see redis.py. After a failover, or a restart that
has lost something, the last steps may be gone:

- A claim that is lost is the one that could make a call be sent twice. So an approval is claimed only in the history
  in which it was given: a server begins another (`master_replid`) when it takes over or is started again. What was
  approved before, and nobody had used yet, is then revoked when somebody wants to use it, and people are asked once
  more, even where in truth nothing was lost. A slot that moves to another node of a cluster counts as such a change,
  and so does the hour after which a server gives up a replica that is gone. Where the gateway's user may not run INFO,
  none of this is noticed.
- What a gateway has seen of an approval holds there: where the server tells an earlier version, the later one is
  written again, and so is what a call that is under way tells at its end. So a no stays a no as long as a gateway that
  has seen it lives and looks. Where others have gone on from the earlier version, the higher version wins, and of two
  that are equally high the one that is there.
- An approval whose opening was lost is gone, with its messages; the identical call opens another. A message that was
  delivered may be delivered again, with the same id. Uses of a grant may be missing from its count. A grant that was
  revoked stays so at the gateway that revoked it, which revokes it again. How agents stand is written again by every
  gateway that has heard it.
- What neither the server nor a gateway that lives remembers is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from gateway.callids import since
from gateway.state.redis_scripts import Script
from gateway.state.redis_servers import RedisServers, Refused, tag
from gateway.state.redis_subscription import Subscription
from policies import budgets
from policies.approval_json import (
    answer_from_json,
    answer_to_json,
    approval_from_json,
    approval_to_json,
    grant_from_json,
    grant_to_json,
    message_from_json,
    message_to_json,
    standing_from_json,
    standing_to_json,
)
from policies.approval_store import ANSWERS_KEPT, KEPT, Answer, Message, Standing, StoreUnavailable
from policies.approvals import ENDED, Approval, Move, State, due, moved
from policies.grants import Grant
from policies.money import MOST

log = logging.getLogger("weighbridge.state")

_Value = TypeVar("_Value")

SHARE: Final = 512 * 1024 * 1024
"""Bytes that the approvals of one tenant may come to."""
PIECE: Final = 256 * 1024
"""Bytes that are sent or asked for at once: whoever else asks the server waits no longer for them than a moment."""
UNKNOWN_KEPT: Final = 90 * 86_400
"""Seconds for which an approval is kept of whose call nobody knows what became."""

_BASE: Final = f"{tag('')}approvals"
_KEYS: Final = (_BASE, f"{_BASE}:none")
_STANDINGS: Final = f"{_BASE}:standings"

_MICRO: Final = 1_000_000
_OVERHEAD: Final = 1024
"""Bytes that an approval takes besides its texts."""
_PAGE: Final = 200
_PAGE_BYTES: Final = 1024 * 1024
_VERSIONS: Final = 1000
"""Approvals whose versions are asked for together."""
_AT_ONCE: Final = 2
"""Pieces that are under way at the same time."""
_PARCEL_KEPT: Final = 60_000
_USE_KEPT: Final = 600_000
_GRANT_KEPT: Final = 86_400_000
"""Milliseconds."""
_MOST_SEEN: Final = 10_000
"""Approvals and the like that a gateway remembers, to see that the server has forgotten something."""
_TRIES: Final = 3

_DOUBTED: Final = (
    "The server that keeps approvals was started again or replaced after this was approved, and may have forgotten "
    "that the call was sent. Somebody has to look what became of it, and approve it anew if it is to be sent."
)


class _Row(NamedTuple):
    """An approval as a script tells it. `version` is 0 where something else has its place."""

    id: bytes
    version: int
    change: bytes
    doc: bytes
    length: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Seen:
    """A version of an approval, as `_doc` has it. `change` is the digest of `doc`."""

    version: int
    change: str
    doc: bytes


class RedisApprovals:
    """Implements `policies.approval_store.ApprovalStore`.

    Every step is answered within 250 ms or raises StoreUnavailable, what is long piece by piece; after that it raises
    at once, until the server was reached again in the background. What raised may be tried again: it is done once.
    """

    def __init__(self, servers: RedisServers, share: int = SHARE) -> None:
        """`servers` are closed by whoever has made them, after this. `share` is what one tenant's may come to, in
        bytes."""
        self._servers = servers
        self._scripts = servers.scripts
        self._share = share
        self._listeners: list[Callable[[Collection[str] | None], None]] = []
        self._subscription = Subscription(servers, f"{_BASE}:changed", self._heard)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._lost: set[str] = set()
        """Those of `_seen` that the server has in an earlier version."""
        self._revoked: OrderedDict[str, None] = OrderedDict()
        self._standings: dict[str, bytes] = {}
        """How agents stand, as it is kept, by what stands for the agent there."""
        self._read: dict[bytes, Standing] = {}
        """What `_standings` say."""
        self._agents: dict[str, tuple[str, str] | None] = {}
        """Whose they are; None for nobody's."""
        self._told: OrderedDict[str, None] = OrderedDict()
        """What was found unreadable, and was told."""
        self._pieces = asyncio.Semaphore(_AT_ONCE)

    @property
    def failure(self) -> str | None:
        return self._servers.failure

    def now_ns(self) -> int:
        return self._servers.clock.now_ns()

    def begin(self) -> None:
        self._servers.begin()
        self._subscription.begin()

    def listen(self, changed: Callable[[Collection[str] | None], None]) -> None:
        self._listeners.append(changed)

    async def close(self) -> None:
        await self._subscription.close()

    # Approvals

    async def open(self, fresh: Approval, messages: Sequence[Message] = ()) -> Approval:
        ask, bulk = self._fresh(fresh)
        ask |= {"messages": _announced(messages), "bytes": PIECE}
        status, *rest = await self._step(self._scripts.hold, ask, bulk)
        if status == b"FULL":
            raise StoreUnavailable(_full(fresh))
        if status == b"THERE":
            return await self._one(rest[0])
        self._see(fresh.id, fresh.version, ask["fresh"])
        self._tell(fresh.id)
        return fresh

    async def get(self, approval: str) -> Approval | None:
        (_, rows) = await self._run(self._scripts.held, {"id": approval, "bytes": PIECE})
        return await self._one(rows[0]) if rows else None

    async def last(self, key: str) -> Approval | None:
        (_, rows) = await self._run(self._scripts.held, {"key": key, "bytes": PIECE})
        return await self._one(rows[0]) if rows else None

    async def versions(self, approvals: Collection[str]) -> Mapping[str, int]:
        wanted = list(approvals)
        pages = [wanted[start : start + _VERSIONS] for start in range(0, len(wanted), _VERSIONS)]
        replies = await asyncio.gather(*(self._run(self._scripts.versions, {"ids": page}) for page in pages))
        found = {}
        for page, (_, told) in zip(pages, replies, strict=True):
            for name, version in zip(page, told, strict=True):
                if version:
                    seen = self._seen.get(name)
                    if seen is not None and seen.version > version:
                        self._lost.add(name)
                        version = seen.version
                    found[name] = version
        await self._write_again()
        return found

    async def replace(self, after: Approval, messages: Sequence[Message] = (), *, answer: Answer | None = None) -> bool:
        ask: dict[str, Any] = {"change": _facts(after, _doc(after)), "messages": _announced(messages)}
        bulk = b""
        if answer is not None:
            bulk = answer_to_json(answer)
            ask["answer"] = {"length": len(bulk), "parcel": _digest(bulk).hex(), "kept": ANSWERS_KEPT * 1000}
        return await self._change(after, ask, bulk)

    async def supersede(self, before: Approval, fresh: Approval, messages: Sequence[Message] = ()) -> bool:
        ask, bulk = self._fresh(fresh)
        ask |= {"change": _facts(before, _doc(before)), "messages": _announced(messages)}
        if not await self._change(before, ask, bulk):
            return False
        if fresh.id not in self._seen:
            self._see(fresh.id, fresh.version, ask["fresh"])
        self._tell(fresh.id)
        return True

    async def answer(self, approval: str) -> Answer | None:
        found = await self._long(f"answer:{approval}", None)
        if found is None:
            return None
        try:
            return answer_from_json(found)
        except ValueError as error:
            raise StoreUnavailable(f"the answer of {approval} cannot be read: {error}") from None

    async def listed(
        self, states: Collection[State], tenant: str | None = None, after: str | None = None, most: int = 100
    ) -> Sequence[Approval]:
        ask: dict[str, Any] = {"states": sorted(set(states)), "bytes": _PAGE_BYTES}
        if tenant is not None:
            ask["tenant"] = tenant
        if after is not None:
            ask["after"] = after
            if (at := since(after.removeprefix("apr_"))) is not None:
                ask["since"] = at // 1000
        found: list[Approval] = []
        more = 1 if states else 0
        while more and len(found) < most:
            ask["most"] = min(most - len(found), _PAGE)
            _, rows, more, *looked = await self._run(self._scripts.held_in, ask)
            if looked:
                ask["after"], ask["at"] = looked[0].decode(errors="replace"), looked[1]
            found += await self._several(rows)
        return found

    async def due(self, now: int, most: int = 100) -> Sequence[Approval]:
        found: dict[str, Approval] = {}
        passed_over, looked = 0, 1
        while looked and len(found) < most:
            wanted = min(most - len(found), _PAGE)
            ask = {"now": now // 1000, "from": passed_over, "most": wanted, "bytes": _PAGE_BYTES}
            _, rows, looked = await self._run(self._scripts.overdue, ask)
            passed_over += looked
            found |= {each.id: each for each in await self._several(rows)}
        in_order = [(at, each.id) for each in found.values() if (at := due(each)) is not None and at <= now]
        return [found[name] for _, name in sorted(in_order)[:most]]

    # What people are to be told

    async def messages(self, now: int, lease: int, most: int = 20) -> Sequence[Message]:
        found: dict[str, Message] = {}
        more = 1
        while more and len(found) < most:
            ask = {"now": now // 1000, "lease": lease // 1000, "most": most - len(found), "bytes": _PAGE_BYTES}
            _, rows, more = await self._run(self._scripts.take, ask)
            for name, tries, text in rows:
                which = name.decode(errors="replace")
                more = more if which not in found else 0
                try:
                    found[which] = replace(message_from_json(text), tries=tries)
                except ValueError as error:
                    self._complain(f"the message {which}", error)
        return list(found.values())

    async def delivered(self, message: str) -> None:
        await self._run(self._scripts.taken, {"id": message})

    async def postponed(self, message: str, until: int) -> None:
        await self._run(self._scripts.postpone, {"id": message, "at": until // 1000})

    # Grants

    async def grant(self, grant: Grant) -> None:
        text = grant_to_json(replace(grant, uses=0, cost=0)).decode()
        ask: dict[str, Any] = {"id": grant.id, "text": text, "expires": grant.expires // 1000, "kept": _GRANT_KEPT}
        if grant.max_uses is not None:
            ask["max_uses"] = grant.max_uses
        if grant.max_cost is not None:
            ask["max_cost"] = grant.max_cost
        await self._run(self._scripts.grant, ask)
        self._tell(grant.id)

    async def grants(self) -> Sequence[Grant]:
        found: dict[str, Grant] = {}
        passed_over, looked = 0, _PAGE
        while looked == _PAGE:
            ask = {"from": passed_over, "most": _PAGE}
            _, rows, looked = await self._run(self._scripts.granted, ask)
            passed_over += looked
            for name, text, uses, cost in rows:
                which = name.decode(errors="replace")
                try:
                    found[which] = replace(grant_from_json(text), uses=uses, cost=int(cost))
                except ValueError as error:
                    self._complain(f"the grant {which}", error)
        for which in found.keys() & self._revoked.keys():
            log.warning("the state's server has lost that the grant %s was revoked: it is revoked again", which)
            del found[which]
            await self.revoke(which)
        now = self.now_ns()
        return [each for each in found.values() if each.lasts(now)]

    async def use(self, grant: str, call: str, cost: int) -> bool:
        if grant in self._revoked:
            return False
        ask = {"id": grant, "call": call, "cost": min(cost, MOST), "kept": _USE_KEPT}
        (status,) = await self._run(self._scripts.use, ask)
        return bool(status == b"OK")

    async def give_back(self, grant: str, call: str) -> None:
        await self._run(self._scripts.give_back, {"id": grant, "call": call})

    async def revoke(self, grant: str) -> bool:
        (status,) = await self._run(self._scripts.revoke, {"id": grant})
        if status != b"OK":
            return False
        _remember(self._revoked, grant, None)
        self._tell(grant)
        return True

    # How agents stand

    async def standings(self) -> Mapping[tuple[str, str], Standing]:
        self.begin()
        try:
            found = await self._servers.command("", "HGETALL", _STANDINGS)
        except budgets.StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from None
        kept = {name.decode(errors="replace"): value for name, value in zip(found[::2], found[1::2], strict=True)}
        told = dict(kept)
        for name, value in self._standings.items():
            if name not in told or _epoch(told[name]) < _epoch(value):
                told[name] = value
        self._standings = told
        for name in told.keys() - self._agents.keys():
            self._agents[name] = self._agent(name)
        agents = {agent: value for name, value in told.items() if (agent := self._agents[name]) is not None}
        self._read = {value: self._read.get(value) or self._standing(agent, value) for agent, value in agents.items()}
        for name, value in told.items():
            if kept.get(name) != value:
                log.warning("the state's server has lost how the agent %s stands: it is written again", name)
                with contextlib.suppress(StoreUnavailable):
                    await self._stand(name, value, None)
        return {agent: self._read[value] for agent, value in agents.items()}

    async def stand(self, tenant: str, agent: str, standing: Standing) -> bool:
        name = orjson.dumps([tenant, agent]).decode()
        value = b"%d:%s" % (standing.epoch, standing_to_json(standing))
        if not await self._stand(name, value, standing.epoch - 1):
            return False
        if name not in self._standings or _epoch(self._standings[name]) < standing.epoch:
            self._standings[name] = value
        return True

    async def _stand(self, name: str, value: bytes, expected: int | None) -> bool:
        ask: dict[str, Any] = {"route": name, "course": value.decode(errors="replace"), "epoch": _epoch(value)}
        if expected is not None:
            ask["expected"] = expected
        (status,) = await self._run(self._scripts.steer, ask, keys=[_STANDINGS])
        return bool(status == b"OK")

    def _agent(self, name: str) -> tuple[str, str] | None:
        with contextlib.suppress(ValueError, TypeError):
            tenant, agent = orjson.loads(name)
            if isinstance(tenant, str) and isinstance(agent, str):
                return tenant, agent
        self._complain(f"whose standing {name:.200} is", "no agent")
        return None

    def _standing(self, agent: tuple[str, str], value: bytes) -> Standing:
        """What a value says. An agent of which it cannot be read makes no calls: it may be that it is stopped."""
        try:
            return standing_from_json(value.partition(b":")[2])
        except ValueError as error:
            self._complain(f"how the agent {agent[1]} of {agent[0]} stands", error)
            return Standing("paused", "How this agent stands cannot be read.", "", 0, _epoch(value))

    # Steps

    async def _run(
        self, script: Script, ask: dict[str, Any], bulk: bytes | None = None, keys: Sequence[str] = _KEYS
    ) -> list[Any]:
        """What a script says, but for the time. Raises StoreUnavailable."""
        self.begin()
        try:
            status, now, *rest = await self._servers.run("", script, keys, ask, bulk)
        except budgets.StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from None
        self._servers.clock.heard(now)
        return [status, *rest]

    async def _step(self, script: Script, ask: dict[str, Any], bulk: bytes) -> list[Any]:
        """The same with something that may be long: then it is brought when the script wants it. Raises
        StoreUnavailable."""
        if len(bulk) <= PIECE:
            return await self._run(script, ask, bulk or None)
        for _ in range(_TRIES):
            reply = await self._run(script, ask)
            if reply[0] != b"BRING":
                return reply
            await self._bring(bulk)
        raise StoreUnavailable("the state's server does not keep what it is brought")

    async def _bring(self, bulk: bytes) -> None:
        ask = {"parcel": _digest(bulk).hex(), "kept": _PARCEL_KEPT}
        there = 0
        for _ in range(_TRIES * (len(bulk) // PIECE + 1)):
            async with self._pieces:
                piece = bulk[there : there + PIECE]
                _, there = await self._run(self._scripts.bring, {**ask, "from": there}, piece)
            if there >= len(bulk):
                return

    async def _long(self, what: str, length: int | None) -> bytes | None:
        """Something that may be long, by the end of its key; None where it is not there, or something else.

        Raises StoreUnavailable.
        """
        found = bytearray()
        while length is None or len(found) < length:
            async with self._pieces:
                try:
                    piece = await self._servers.command(
                        "", "GETRANGE", f"{_BASE}:{what}", len(found), len(found) + PIECE - 1
                    )
                except Refused:
                    return None
                except budgets.StoreUnavailable as error:
                    raise StoreUnavailable(str(error)) from None
            found += piece
            if len(piece) < PIECE:
                break
        return bytes(found) if (len(found) == length if length is not None else found) else None

    def _fresh(self, fresh: Approval) -> tuple[dict[str, Any], bytes]:
        """What scripts have to know of a new approval, and its body."""
        body, facts = fresh.call.body, _facts(fresh, _doc(fresh))
        size = len(body) + len(facts["doc"]) + _OVERHEAD
        facts |= {"key": fresh.key, "size": size, "length": len(body), "parcel": _digest(body).hex()}
        return {"fresh": facts, "share": self._share}, body

    async def _change(self, after: Approval, ask: dict[str, Any], bulk: bytes) -> bool:
        self.begin()
        seen = self._seen.get(after.id)
        if seen is not None and seen.version == after.version - 1:
            ask["before"] = seen.change
        (status,) = await self._step(self._scripts.change, ask, bulk)
        match status:
            case b"OK":
                self._see(after.id, after.version, ask["change"])
                self._tell(after.id)
                return True
            case b"DOUBTED":
                await self._revoke_doubted(after.id)
            case b"FULL":
                raise StoreUnavailable(_full(after))
        return False

    async def _revoke_doubted(self, approval: str) -> None:
        """Takes back what was approved before the server has lost, perhaps, that it was used."""
        log.warning("the approval %s is revoked: the state's server may have lost that it was used", approval)
        known = await self.get(approval)
        if known is not None and known.state is State.APPROVED:
            await self.replace(moved(known, Move.REVOKE, self.now_ns(), _DOUBTED))

    # What is told

    async def _one(self, row: Sequence[Any]) -> Approval:
        """Raises StoreUnavailable for what cannot be read."""
        told = _Row(*row)
        try:
            approval = self._newest(told)
        except ValueError as error:
            raise StoreUnavailable(f"the approval {told.id.decode(errors='replace')} cannot be read: {error}") from None
        await self._write_again()
        whole = await self._whole(approval, told)
        if whole is None:
            raise StoreUnavailable(f"the approval {approval.id} has another body")
        return whole

    async def _several(self, rows: Sequence[Sequence[Any]]) -> list[Approval]:
        """Those that can be read; of others it is told, once."""
        some = []
        for told in (_Row(*row) for row in rows):
            try:
                some.append((self._newest(told), told))
            except ValueError as error:
                self._complain(f"the approval {told.id.decode(errors='replace')}", error)
        await self._write_again()
        found = []
        for approval, told in some:
            whole = await self._whole(approval, told)
            if whole is None:
                self._complain(f"the approval {approval.id}", "its body is lost or another one")
            else:
                found.append(whole)
        return found

    def _newest(self, told: _Row) -> Approval:
        """The approval that is told, but for its body, with the digest of which it has; a later version where this
        gateway has seen one.

        Raises ValueError.
        """
        name = told.id.decode()
        if not told.version:
            raise ValueError("it is something else")
        seen = self._seen.get(name)
        if seen is not None and seen.version > told.version:
            self._lost.add(name)
            return approval_from_json(seen.doc)
        approval = approval_from_json(told.doc)
        if (approval.id, approval.version) != (name, told.version):
            raise ValueError(f"it says that it is {approval.id}, version {approval.version}")
        _remember(self._seen, name, _Seen(told.version, told.change.decode(errors="replace"), told.doc))
        return approval

    async def _whole(self, approval: Approval, told: _Row) -> Approval | None:
        """The approval with its body; None where that is lost, or not what people were asked about."""
        body: bytes | None = told.body
        if len(told.body) != told.length:
            body = await self._long(f"body:{approval.id}", told.length)
        if body is None or _digest(body) != approval.call.body:
            return None
        return replace(approval, call=replace(approval.call, body=body))

    def _see(self, approval: str, version: int, facts: Mapping[str, Any]) -> None:
        _remember(self._seen, approval, _Seen(version, facts["change"], facts["doc"].encode()))

    async def _write_again(self) -> None:
        """Tells the server what it has lost. Where that fails, the next look finds it lost once more."""
        while self._lost:
            name = self._lost.pop()
            if (seen := self._seen.get(name)) is None:
                continue
            log.warning("the state's server has lost version %d of the approval %s: written again", seen.version, name)
            ask = {"change": _facts(approval_from_json(seen.doc), seen.doc), "messages": [], "again": True}
            with contextlib.suppress(StoreUnavailable):
                await self._run(self._scripts.change, ask)

    def _heard(self, said: bytes | None) -> None:
        """Passes on what was published."""
        self._call(None if said is None else said.decode(errors="replace").split("\n"))

    def _tell(self, changed: str) -> None:
        """Tells of a change that was made here, where it is not heard from the server."""
        if not self._subscription.up:
            self._call([changed])

    def _call(self, changed: Collection[str] | None) -> None:
        for listener in self._listeners:
            try:
                listener(changed)
            except Exception as error:
                log.error("a listener for changes of approvals failed", exc_info=error)

    def _complain(self, what: str, error: object) -> None:
        if what not in self._told:
            _remember(self._told, what, None)
            log.error("%s cannot be read, and is passed over: %s", what, error)


def _doc(approval: Approval) -> bytes:
    """An approval as it is kept: with the digest of its body in the body's place. Raises ValueError where it is no
    JSON."""
    return approval_to_json(replace(approval, call=replace(approval.call, body=_digest(approval.call.body))))


def _facts(approval: Approval, doc: bytes) -> dict[str, Any]:
    """What scripts have to know of an approval and its `doc`. Times are in microseconds."""
    facts: dict[str, Any] = {
        "id": approval.id,
        "version": approval.version,
        "state": approval.state,
        "tenant": approval.call.tenant,
        "created": approval.created // 1000,
        "change": _digest(doc).hex(),
        "doc": doc.decode(),
    }
    if (at := due(approval)) is not None:
        facts["due"] = at // 1000
    if approval.state in ENDED:
        facts["kept"] = (UNKNOWN_KEPT if approval.state is State.UNKNOWN else KEPT) * _MICRO
    return facts


def _announced(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"id": each.id, "at": each.at // 1000, "text": message_to_json(replace(each, tries=0)).decode()}
        for each in messages
    ]


def _full(approval: Approval) -> str:
    tenant = approval.call.tenant
    return f"the tenant {tenant} has as many approvals as it may: decide on some of them, or cancel them"


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _epoch(value: bytes) -> int:
    said = value.partition(b":")[0]
    return int(said) if said.isdigit() else 0


def _remember(memory: OrderedDict[str, _Value], key: str, value: _Value) -> None:
    """Remembers it as the newest, and forgets the oldest beyond the most."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _MOST_SEEN:
        memory.popitem(last=False)
